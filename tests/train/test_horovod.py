"""Horovod averages gradients as torch does: the same weights, from every launcher, and what it cannot do is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import horovod_here
import horovod_run
import pytest
import torch
from problems import largest_difference, network, trainer
from processes import HERE, ended, run_ranks, started_ranks
from scenarios import SCENARIOS

from headrace.errors import OptionError
from headrace.train.engines import horovod
from headrace.train.world import World

TOLERANCE = 1e-6
WEIGHTS = ["clipped_momentum", "accumulated", "recomputed"]
COUNTED = ["plain", "unequal_parts", "token_weighted", "filtered", "padded", "empty_on_one_rank"]
STRAIGHT = "resumed"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "mpi"}, "engine must be None, or one of .*horovod.*: got 'mpi'"),
        ({"engine": "horovod", "mesh": "fsdp"}, "works between replicas only: got mesh='fsdp'"),
        ({"engine": "horovod", "mesh": "dp=2,tp=2"}, "works between replicas only: got mesh='dp=2,tp=2'"),
        ({"engine": "horovod", "mesh": "auto"}, "works between replicas only: got mesh='auto'"),
        ({"engine": "horovod", "compression": "bf16"}, "sends gradients as they are: got compression='bf16'"),
    ],
)
def test_what_cannot_go_with_it_is_refused_when_the_trainer_is_made(options, message):
    with pytest.raises(OptionError, match=message):
        trainer(**options)


def test_a_machine_without_it_is_told_how_to_build_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    made = trainer(engine="horovod")
    with pytest.raises(OptionError, match=r"needs Horovod, built for this torch.*docs/horovod\.md") as caught:
        made.fit(steps=1)
    assert "\n" not in str(caught.value)
    assert made.step == 0


def test_parameters_that_it_cannot_add_up_are_refused():
    model, options = network().bfloat16(), trainer(engine="horovod")._options
    with pytest.raises(OptionError, match=r"of float16, float32 and float64: 0\.weight is torch\.bfloat16"):
        horovod.distribute(model, World(0, 1, torch.device("cpu")), options)


@pytest.fixture(scope="module")
def packages():
    return horovod_here.folder()


@pytest.fixture(scope="module")
def importable(packages):
    """The environment of a process that finds it."""
    return {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", ""), str(packages)])}


@pytest.fixture(scope="module")
def ranks(importable, tmp_path_factory):
    """What each scenario gave on two ranks of Horovod, scenario -> values by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    names = [*WEIGHTS, *COUNTED, STRAIGHT]
    run_ranks(2, [HERE / "scenarios.py", *names, "--out", folder], TEST_ENGINE="horovod", **importable)
    return {name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)] for name in names}


pytestmark = pytest.mark.timeout(3600)  # of which the first test's wait for the build is all but seconds


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_one_process(name, ranks, tmp_path):
    rank_0, rank_1 = ranks[name]
    assert largest_difference(rank_0, rank_1) == 0
    assert largest_difference(rank_0, SCENARIOS[name](tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("name", COUNTED)
def test_unequal_batches_are_weighted_as_on_one_process(name, ranks, tmp_path):
    alone = SCENARIOS[name](tmp_path)
    for found in ranks[name]:
        assert largest_difference(found.pop("weights"), alone["weights"]) <= TOLERANCE
        assert found == pytest.approx(
            {name: value for name, value in alone.items() if name != "weights"}, abs=TOLERANCE
        )


def test_a_run_goes_on_bit_for_bit(ranks):
    for found in ranks[STRAIGHT]:
        assert found["resumed_from"] == "step-00000012"
        assert largest_difference(found["straight"], found["broken"]) == 0


def test_a_gradient_of_an_earlier_micro_batch_alone_is_averaged_too(importable, tmp_path):
    run_ranks(2, [HERE / "horovod_alternating.py", tmp_path], **importable)
    rank_0, rank_1 = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert largest_difference(rank_0, rank_1) == 0


def test_its_own_launcher_starts_the_same_run(importable, tmp_path):
    launcher = [sys.executable, "-c", "from horovod.runner.launch import run_commandline as run; run()"]  # horovodrun
    command = [*launcher, "--gloo", "-np", "2", "-H", "localhost:2", sys.executable]
    done = subprocess.run(
        [*command, HERE / "horovod_run.py", tmp_path],
        env={**os.environ, **importable, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    rank_0, rank_1 = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert largest_difference(rank_0, rank_1) == 0
    assert largest_difference(rank_0, horovod_run.learnt()) <= TOLERANCE


def test_a_rank_that_loses_its_peer_says_so(importable):
    """So that the launcher starts all of them again, and does not take it for an error of the run's."""
    with started_ranks(2, [HERE / "horovod_killed.py"], **importable) as processes:
        (code, out, err), (killed, *_) = ended(processes)
    assert (code, out.strip(), killed) == (0, "lost peer", -signal.SIGKILL), err
