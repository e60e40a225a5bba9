"""Checkpoints in a store: only complete ones are found, from anywhere; a store that refuses is told on every rank."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from problems import largest_difference, network, trainer, weights
from processes import HERE, ended, run_ranks, started_ranks

import headrace as hr
from headrace.errors import CheckpointError, OptionError
from headrace.storage import list_folder, locate, remove, walk, write_bytes
from headrace.train.checkpoint import complete_checkpoints
from headrace.train.homes import StoreHome
from headrace.train.saving import Checkpoints
from headrace.train.world import World
from waiting import wait_for


def names(place):
    return [entry.name for entry in list_folder(place)]


def run(place, run_dir, steps, model=None, **options):
    options = {"optimizer": hr.adamw(0.01), "checkpoint_every": 5, **options}
    return trainer(model, run_dir=run_dir, checkpoints=str(place), **options).fit(steps=steps)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_goes_on_from_a_store_on_an_empty_machine(s3_strict, tmp_path, is_async):
    straight, again = network(), network(seed=9)
    trainer(straight, optimizer=hr.adamw(0.01)).fit(steps=20)
    run(s3_strict, tmp_path / "here", 12, checkpoint_async=is_async)
    assert names(s3_strict) == ["step-00000010", "step-00000012"], "the newest two stay"
    shutil.rmtree(tmp_path / "here")
    result = run(s3_strict, tmp_path / "there", 20, again, checkpoint_async=is_async)
    assert str(result.resumed_from) == f"{s3_strict}/step-00000012"
    assert largest_difference(weights(straight), weights(again)) == 0
    assert list((tmp_path / "there/uploads").rglob("*.*")) == [], "nothing stays on the way"
    done = hr.export_safetensors(str(s3_strict), tmp_path / "model.safetensors")
    assert done.step == 20


def test_what_is_incomplete_or_damaged_in_a_store_is_passed_over(s3_strict, tmp_path):
    run(s3_strict, tmp_path, 15, keep_checkpoints=3)
    remove(s3_strict / "step-00000015" / "state.json")
    write_bytes(s3_strict / "step-00000010" / "__0_0.distcp", b"damaged")
    assert [place.name for place in complete_checkpoints(s3_strict)] == ["step-00000010", "step-00000005"]
    result = run(s3_strict, tmp_path, 7)
    assert str(result.resumed_from) == f"{s3_strict}/step-00000005"
    assert names(s3_strict / "step-00000015") == [], "what was half-written is gone"
    assert [place.name for place in complete_checkpoints(s3_strict)] == ["step-00000007", "step-00000005"]
    assert "state.json.set-aside" in names(s3_strict / "step-00000010"), "of a history that was left"


def test_all_ranks_write_to_the_store_and_another_mesh_reads_it(s3_strict, tmp_path):
    options = {"checkpoints": str(s3_strict), "checkpoint_async": True}
    run_ranks(2, [HERE / "saving_run.py", tmp_path / "a", json.dumps({"steps": 6, **options})], TEST_MESH="fsdp")
    files = {entry.name for entry in walk(s3_strict / "step-00000006")}
    assert files == {".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"}
    run_ranks(1, [HERE / "saving_run.py", tmp_path / "b", json.dumps({"steps": 6, **options})])
    one, other = (torch.load(tmp_path / name / "weights.pt") for name in "ab")
    assert largest_difference(one, other) == 0


def test_a_store_that_refuses_is_one_message_on_every_rank(s3_strict, tmp_path):
    place = f"s3://no-such-bucket/{s3_strict.name}"
    options = {"steps": 6, "checkpoints": place}
    with started_ranks(2, [HERE / "saving_run.py", tmp_path, json.dumps(options)]) as ranks:
        found = ended(ranks)
    assert [code for code, _, _ in found] == [1, 1]
    last = [err.strip().splitlines()[-1].partition("]: ")[2] for _, _, err in found]
    assert last[0] == last[1]
    assert f"cannot list {place}" in last[0]


def test_a_store_that_refuses_in_the_middle_of_a_run_is_one_error(s3_strict, tmp_path):
    home = StoreHome(locate(f"s3://no-such-bucket/{s3_strict.name}"), tmp_path, 0)
    checkpoints = Checkpoints(home, World(0, 1, torch.device("cpu")), keep=2, is_async=False)
    with pytest.raises(CheckpointError, match=r"step 1 could not be written to s3://no-such.*; earlier .* are intact"):
        checkpoints.save(1, {"model.x": torch.ones(3)}, {"step": 1})


def test_a_rank_killed_while_it_uploads_leaves_the_earlier_checkpoint(s3_strict, tmp_path):
    options = json.dumps({"steps": 100_000, "checkpoints": str(s3_strict), "checkpoint_async": True})
    with started_ranks(2, [HERE / "saving_run.py", tmp_path, options]) as ranks:
        wait_for(lambda: len(complete_checkpoints(s3_strict)) == 2, "two checkpoints")
        for rank in ranks:
            rank.kill()
    newest = complete_checkpoints(s3_strict)[0].name
    step = int(newest.removeprefix("step-"))
    again = {"steps": step + 1, "checkpoints": str(s3_strict)}
    found = run_ranks(2, [HERE / "saving_run.py", tmp_path, json.dumps(again)])
    assert found[0][1].split() == [str(step + 1), f"{s3_strict}/{newest}"]
    assert names(s3_strict) == [newest, f"step-{step + 1:08d}"]


def test_a_place_that_is_none_is_refused_before_anything_begins(tmp_path):
    with pytest.raises(OptionError, match="must not hold a user's key or password"):
        trainer(run_dir=tmp_path, checkpoints="s3://key:secret@bucket/prefix")
    with pytest.raises(OptionError, match="checkpoints needs a place for what the run keeps: set run_dir"):
        trainer(checkpoints=str(tmp_path)).fit(steps=1)


def test_a_folder_elsewhere_serves_too(tmp_path):
    run(tmp_path / "kept", tmp_path / "run", 5)
    assert (tmp_path / "kept/step-00000005/state.json").exists()
    assert run(tmp_path / "kept", tmp_path / "other", 7).resumed_from == tmp_path / "kept/step-00000005"
    with pytest.raises(CheckpointError, match="resume must be"):
        trainer(run_dir=tmp_path / "third").fit(steps=1, resume=tmp_path / "run")
