"""From which checkpoint a run goes on."""

import json

import pytest

from headrace.errors import CheckpointError, OptionError
from headrace.train.checkpoint import read_state
from headrace.train.rundir import candidates


def checkpoint(run_dir, step):
    path = run_dir / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"version": 1}))
    return path


def test_a_checkpoint_of_another_run_is_refused_where_the_folder_has_its_own(tmp_path):
    """After a crash the two histories could not be told apart."""
    own, other = checkpoint(tmp_path / "own", 10), checkpoint(tmp_path / "other", 50)
    with pytest.raises(OptionError, match="holds checkpoints of its own"):
        candidates(tmp_path / "own", other, restarted=False)
    assert candidates(tmp_path / "own", own, restarted=False) == [own]
    assert candidates(tmp_path / "new", other, restarted=False) == [other]
    assert candidates(tmp_path / "own", other, restarted=True) == [own]


def test_a_checkpoint_whose_writing_was_cut_off_is_refused_by_its_name(tmp_path):
    path = checkpoint(tmp_path, 10)
    cut_off = path.rename(path.with_name(path.name + ".partial"))
    with pytest.raises(CheckpointError, match="its writing was cut off"):
        read_state(cut_off)
