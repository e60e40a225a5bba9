"""resolve_rank: arguments first, then the launcher's environment, then one process alone."""

import pytest

from headrace.errors import OptionError
from headrace.rank import Rank, local_world_size, resolve_rank


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Rank(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Rank(3, 8)),
        ({"RANK": "3"}, Rank(0, 1)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}, Rank(1, 4)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Rank(0, 1)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, Rank(2, 4)),
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}, Rank(1, 2)),
        ({"RAY_TRAIN_WORLD_RANK": "1", "RAY_TRAIN_WORLD_SIZE": "2"}, Rank(1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "9"}, Rank(1, 2)),
    ],
)
def test_launchers_are_understood(environ, expected):
    assert resolve_rank(environ=environ) == expected


def test_arguments_win():
    assert resolve_rank(1, 2, {"RANK": "3", "WORLD_SIZE": "8"}) == Rank(1, 2)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_impossible_arguments_are_refused(rank, world_size):
    with pytest.raises(OptionError):
        resolve_rank(rank, world_size, {})


def test_impossible_environment_is_refused_with_its_names():
    with pytest.raises(OptionError, match="RANK and WORLD_SIZE must be whole numbers"):
        resolve_rank(environ={"RANK": "one", "WORLD_SIZE": "8"})


@pytest.mark.parametrize(
    ("environ", "expected"), [({}, 1), ({"LOCAL_WORLD_SIZE": "4"}, 4), ({"SLURM_NTASKS_PER_NODE": "2(x3)"}, 1)]
)
def test_local_world_size(environ, expected):
    assert local_world_size(environ) == expected
