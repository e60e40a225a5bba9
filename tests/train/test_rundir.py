"""From which checkpoint a run goes on."""

import json

import pytest

from headrace.errors import CheckpointError, OptionError
from headrace.storage import locate
from headrace.train.checkpoint import read_state
from headrace.train.rundir import candidates


def checkpoint(run_dir, step):
    path = run_dir / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "state.json").write_text(json.dumps({"version": 2}))
    return path


def tried(run_dir, resume, restarted=False):
    home = locate(run_dir / "checkpoints")
    return [place.path for place in candidates(run_dir, home, resume, restarted=restarted)]


def test_a_checkpoint_of_another_run_is_refused_where_the_folder_has_its_own(tmp_path):
    """After a crash the two histories could not be told apart."""
    own, other = checkpoint(tmp_path / "own", 10), checkpoint(tmp_path / "other", 50)
    with pytest.raises(OptionError, match="holds checkpoints of its own"):
        tried(tmp_path / "own", other)
    assert tried(tmp_path / "own", own) == [own]
    assert tried(tmp_path / "new", other) == [other]
    assert tried(tmp_path / "own", other, restarted=True) == [own]


def test_a_checkpoint_whose_writing_was_cut_off_is_refused_by_its_name(tmp_path):
    path = checkpoint(tmp_path, 10)
    cut_off = path.rename(path.with_name(path.name + ".partial"))
    with pytest.raises(CheckpointError, match="its writing was cut off"):
        read_state(cut_off)
