"""Guards in loops that are not the Trainer's, with the real libraries: what is found, and the weights that come of it.

The scripts beside this train. Their weights must be those of a plain loop that leaves the bad batch out, or that goes
back by itself to where the guards went.
"""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import guard_case as g
import numpy as np
import pytest
import torch

import headrace as hr
from headrace.report import read_run
from headrace.telemetry import read_events
from waiting import DEADLINE_SEC

HERE = Path(__file__).parent
LIBRARIES = ["loop", "fabric", "accelerate", "lightning", "transformers"]
IMPORTED = {"loop": "torch", "fabric": "lightning"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """96 samples that can be told apart by a line: an epoch is 8 global batches."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((96, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3))).argmax(1)
    folder = tmp_path_factory.mktemp("guarded") / "packed"
    hr.pack(({"__key__": f"{i:04d}", "npy": x[i], "cls": int(y[i])} for i in range(96)), folder)
    return folder


def started(name, packed, out, ranks, cases):
    """Run a script; what it kept, by case and rank."""
    imported = IMPORTED.get(name, name)
    if find_spec(imported) is None:
        pytest.skip(f"{imported} is not installed: pip install 'headrace[dev]'")
    command = [HERE / f"guard_{name}.py", packed, out, *cases]
    if ranks > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=4 * DEADLINE_SEC
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {case: [torch.load(out / f"{case}-{rank}.pt") for rank in range(ranks)] for case in cases}


@pytest.fixture(
    scope="module", params=[*((name, 1) for name in LIBRARIES), ("loop", 2)], ids=lambda p: f"{p[0]}-{p[1]}"
)
def run(request, packed, tmp_path_factory):
    name, ranks = request.param
    out = tmp_path_factory.mktemp(name)
    return out, ranks, started(name, packed, out, ranks, ["nan", "spike"])


@pytest.fixture(scope="module")
def replicas(packed, tmp_path_factory):
    out = tmp_path_factory.mktemp("replicas")
    return out, started("loop", packed, out, 2, ["bad", "flip", "repair", "slow"])


def plainly(packed, case, ranks, left_out=None, back=None):
    """Weights of a loop without guards. `back`: after the second of these steps it goes back to after the first."""
    model = g.make_model(case, ranks)
    optimizer = case.optimizer(model.parameters())
    kept = None
    with g.make_loader(packed) as loader:
        for step, batch in enumerate(g.Faulty(loader, case), start=1):
            if step == left_out:
                continue
            optimizer.zero_grad()
            g.loss_of(model, batch).backward()
            optimizer.step()
            if back is not None and step == back[0]:
                kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            if back is not None and step == back[1]:
                model.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
    return model.state_dict()


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def findings(outcome, guard):
    return [finding for finding in outcome["findings"] if finding["guard"] == guard]


def test_after_a_batch_with_a_nan_the_weights_are_those_of_a_run_without_it(run, packed):
    """Momenta, decay, and on one rank the running statistics included: the step leaves nothing."""
    _, ranks, kept = run
    expected = plainly(packed, g.CASES["nan"], ranks, left_out=20)
    for outcome in kept["nan"]:
        assert outcome["message"] is None
        assert outcome["step"] == 30
        assert largest_difference(outcome["weights"], expected) <= 1e-6


def test_a_batch_with_a_nan_is_named_by_rank_and_sample(run, packed):
    _, ranks, kept = run
    with g.make_loader(packed) as loader:
        batch = [batch["__key__"] for _, batch in zip(range(20), loader, strict=False)][-1]
    broken = batch[1 * ranks + ranks - 1]  # the last rank's second: ranks take turns
    for outcome in kept["nan"]:
        [found] = findings(outcome, "finite")
        assert (found["step"], found["ranks"], found["keys"]) == (20, [ranks - 1], [[broken]])


def test_a_spike_that_stays_takes_a_run_back_to_its_copy(run, packed):
    _, ranks, kept = run
    expected = plainly(packed, g.CASES["spike"], ranks, back=(60, 72))
    for outcome in kept["spike"]:
        assert [found["step"] for found in findings(outcome, "spike")] == [70, 71, 72]
        [found] = findings(outcome, "rollback")
        assert (found["step"], found["to_step"]) == (72, 60)
        assert largest_difference(outcome["weights"], expected) <= 1e-5


def test_findings_are_events_of_the_recorded_run(run):
    out, _, kept = run
    for case in ("nan", "spike"):
        events = read_run(out / case).guards
        assert [(event["guarded_step"], event["guard"]) for event in events] == [
            (found["step"], found["guard"]) for found in kept[case][0]["findings"]
        ]


def test_a_flipped_bit_ends_the_run_on_both_ranks_at_the_next_comparison(replicas):
    _, kept = replicas
    for outcome in kept["flip"]:
        assert "after step 40 the parameters of ranks 0 and 1 differ" in outcome["message"]
        assert outcome["step"] == 41
        assert [found["ranks"] for found in findings(outcome, "replica")] == [[0, 1]]


def test_a_flipped_bit_is_repaired_if_that_is_asked_for(replicas):
    _, kept = replicas
    first, second = kept["repair"]
    assert first["message"] is second["message"] is None
    assert [found["step"] for found in findings(first, "replica")] == [40]
    assert largest_difference(first["weights"], second["weights"]) == 0


def test_too_many_bad_steps_in_a_row_end_the_run_on_both_ranks(replicas):
    _, kept = replicas
    for outcome in kept["bad"]:
        assert "fewer than 3 steps in a row may be bad: steps 20 to 22 were" in outcome["message"]
        assert "the loss of rank 1 (samples " in outcome["message"]


def test_a_slow_rank_is_named(replicas):
    out, kept = replicas
    for outcome in kept["slow"]:
        slow = [found for found in findings(outcome, "straggler") if found["ranks"] == [1]]
        assert [found["step"] for found in slow] == [20, 40]
        assert all(found["p50_sec"] > 0.05 for found in slow)
    paces = [event for event in read_events(out / "slow/events.jsonl") if event["event"] == "ranks"]
    assert [event["guarded_step"] for event in paces] == [20, 40]
    assert all(event["p50_sec"][1] > 0.05 and event["step"] >= event["guarded_step"] for event in paces)
