"""The exact batches in the loops of other libraries: train, kill with SIGKILL, go on, compare every batch.

The scripts beside this train with the real library. What they must have seen is what a loader gives that nothing
disturbs.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import headrace as hr
from headrace.report import read_run, verdict
from headrace.report.runlog import PARTS
from waiting import DEADLINE_SEC

HERE = Path(__file__).parent
GLOBAL_BATCH_SIZE, EPOCHS = 12, 2  # as in run.py
LIBRARIES = ["fabric", "lightning", "accelerate", "transformers"]
IMPORTED = {"fabric": "lightning", "dataloader": "torch", "stateful": "torchdata"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """100 samples: an epoch is 8 global batches of 12, and 4 samples that are dropped."""
    folder = tmp_path_factory.mktemp("loops") / "packed"
    samples = ({"__key__": f"{i:04d}", "npy": np.full(4, i, np.float32), "cls": i % 3} for i in range(100))
    hr.pack(samples, folder, shard_size="2KiB")
    return folder


@pytest.fixture(scope="module")
def undisturbed(packed):
    with hr.Loader(
        hr.Stream(hr.open(packed), seed=5, epochs=EPOCHS).decode(), global_batch_size=GLOBAL_BATCH_SIZE
    ) as one:
        return [batch["__key__"] for batch in one]


def train(name, packed, run, kill_at=0, ranks=1, **environment):
    """Run a script on so many ranks; the global batches that they saw, in the order of positions."""
    if find_spec(IMPORTED.get(name, name)) is None:
        pytest.skip(f"{IMPORTED.get(name, name)} is not installed: pip install 'headrace[dev]'")
    run.mkdir(exist_ok=True)
    command = [HERE / f"train_{name}.py", packed, run, str(kill_at)]
    if ranks > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command]
    others = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
    environment = others | environment
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=4 * DEADLINE_SEC
    )
    ends = [-signal.SIGKILL if ranks == 1 else 1] if kill_at else [0]
    assert done.returncode in ends, done.stderr[-4000:]
    seen = []
    for rank in range(ranks):
        path = run / f"batches-{rank}.jsonl"
        seen.append([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    return [[part[i % ranks][i // ranks] for i in range(sum(map(len, part)))] for part in zip(*seen, strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_killed_run_goes_on_with_the_exact_batches(name, packed, undisturbed, tmp_path):
    """Killed on two ranks in the middle of an epoch, then alone after a state that was saved at the epoch's end.

    So the library does not share the batches out a second time, and the state holds at another number of ranks.
    """
    seen = train(name, packed, tmp_path / "run", kill_at=7, ranks=2)
    assert seen == undisturbed[: len(seen)]
    assert len(seen) in (6, 7)  # the other rank may not have got as far
    assert train(name, packed, tmp_path / "run", kill_at=5) == undisturbed[4:9]
    assert train(name, packed, tmp_path / "run") == undisturbed[8:]


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_recorded_loader_is_as_exact_and_leaves_the_record_of_its_run(name, packed, undisturbed, tmp_path):
    """Killed on the way and gone on with: one history of all steps, whatever had to be done again."""
    assert train(name, packed, tmp_path / "run", kill_at=5, RECORDED="1") == undisturbed[:5]
    assert train(name, packed, tmp_path / "run", RECORDED="1") == undisturbed[4:]
    run = read_run(tmp_path / "run/record")
    assert run.steps["step"].tolist() == list(range(1, 17))
    assert run.steps["epoch"].tolist() == [0] * 8 + [1] * 8
    assert set(run.steps["samples"]) == {GLOBAL_BATCH_SIZE}
    assert np.allclose(sum(run.steps[f"{part}_sec"] for part in PARTS), run.steps["sec"])
    assert run.steps["rest_sec"].sum() < run.steps["sec"].sum() / 2
    assert (run.steps["wait_sec"] > 0).all()
    assert (run.attempts[1].start["step"], run.feeds[-1]["step"]) == (4, 16)
    assert verdict(run).sentence


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dataloader", "stateful"])
def test_a_killed_run_of_a_dataloader_goes_on_with_the_exact_batches(name, packed, tmp_path):
    """In the first epoch, then in the second, with the workers at different places of it."""
    stream = hr.Stream(hr.open(packed), seed=5, epochs=EPOCHS).decode()
    whole = [
        batch["__key__"] for batch in DataLoader(stream, batch_size=5, num_workers=2, multiprocessing_context="spawn")
    ]
    assert train(name, packed, tmp_path / "run", kill_at=7) == whole[:7]
    assert train(name, packed, tmp_path / "run", kill_at=19) == whole[4:23]
    assert train(name, packed, tmp_path / "run") == whole[20:]
