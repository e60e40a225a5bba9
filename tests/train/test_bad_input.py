"""What cannot be trained ends on every rank, with one line that says what it was and the way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from processes import HERE, run_ranks

from waiting import DEADLINE_SEC

EVERYWHERE = {
    "mesh": "OptionError: the mesh's sizes must multiply to the number of processes: got mesh='dp=3' on 2; "
    "say mesh='dp', or start 3 processes",
    "meta": "OptionError: a model must have its values before it is trained: 0.weight lies on device meta; ",
    "dtypes": "OptionError: fsdp reduces a block's gradients together, so trained parameters must be of one dtype: "
    "1.1.down.bias is float32, 1.1.up.bias is bfloat16; convert the model",
    "vector": "TrainingError: loss must return the mean over the batch, a tensor of no dimension: got shape (6,)",
    "number": "TrainingError: loss must return the mean over the batch, a tensor of no dimension: got a float",
    "no gradient": "TrainingError: loss must depend on parameters that are trained: what it returned has no gradient; ",
    "unused": "TrainingError: on several processes every parameter must take part in the loss: spare.weight, "
    "spare.bias got no gradient; use it, or freeze it",
    "another model": "is of another model: '0.bias' is (16,) in it and (5,) here; resume with the settings it was",
}
ONE_RANK = {
    "vector_loss": "rank 1, step 1: loss must return the mean over the batch, a tensor of no dimension: got shape (2,)",
    "short_loader": "rank 1, step 7: every rank's loader must give the 8 batches of an epoch that steps_per_epoch "
    "says: that of rank 1 ended after step 6, 6 batches into one",
    "short_evaluation": "rank 1: every rank's loader must give the batches that steps_per_epoch says: the evaluation's "
    "of rank 1 gave 6 of 8",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    run_ranks(2, [HERE / "bad_input.py", folder])
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_is_wrong_everywhere_is_told_alike_on_every_rank(name, refusals):
    one, other = (found[name] for found in refusals)
    assert EVERYWHERE[name] in one
    assert "\n" not in one
    assert one == other


@pytest.mark.parametrize("mesh", ["dp", "fsdp"])
def test_running_statistics_are_those_of_rank_0_on_every_rank_once_they_are_used(mesh, refusals):
    one, other = (found[f"statistics {mesh}"] for found in refusals)
    assert one == other
    assert any(one)


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_RANK)
def test_what_is_wrong_on_one_rank_ends_all_and_names_it(name, tmp_path):
    command = [sys.executable, "-m", "headrace.cli.main", "train", f"{HERE / 'bad_input.py'}:{name}", "--nproc", "2"]
    done = subprocess.run(
        [*command, "--run", tmp_path / "run", "--max-restarts", "0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * DEADLINE_SEC,
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("headrace: ")]
    assert len(errors) == 1, done.stderr
    assert ONE_RANK[name] in errors[0]
