"""verdict: what bounds a run follows from where its steps' time went."""

import json
from dataclasses import replace

import pytest
from run_files import PIDS, RunFile, write_run

from headrace.report import feed_stages, read_run, verdict
from headrace.report.ranks import rank_times, straggler
from headrace.report.remedies import Case

QUIET = {"wait": 0.001, "copy": 0.001, "compute": 0.1, "communication": 0.004, "checkpoint": 0.0, "rest": 0.001}


def run_of(folder, num_steps=40, **parts):
    file = RunFile(folder)
    file.start(pids=PIDS)
    for step in range(1, num_steps + 1):
        file.step(step, loss=1.0, **{**QUIET, **parts})
    return file


@pytest.mark.parametrize(
    ("parts", "bound"),
    [
        ({}, "compute"),
        ({"wait": 0.02}, "input"),
        ({"wait": 0.5}, "input"),
        ({"wait": 0.008}, "compute"),
        ({"copy": 0.05}, "copy"),
        ({"communication": 0.06}, "communication"),
        ({"communication": 0.015}, "compute"),
        ({"checkpoint": 0.2}, "checkpoint"),
        ({"rest": 0.09}, "overhead"),
        ({"wait": 0.1, "communication": 0.3}, "communication"),
        ({"wait": 0.3, "communication": 0.1}, "input"),
        ({"compute": 0.0, "wait": 0.5}, "input"),
    ],
)
def test_the_largest_part_that_is_large_enough_bounds(tmp_path, parts, bound):
    judged = verdict(run_of(tmp_path, **parts).path)
    assert judged.bound == bound
    assert judged.sentence.lower().startswith(f"{bound}-bound: ")
    assert sum(judged.shares.values()) == pytest.approx(1)
    assert judged.evidence


def test_au_is_compute_over_wall_without_the_first_step_of_each_start(tmp_path):
    file = RunFile(tmp_path)
    for attempt in range(2):
        first = 10 * attempt + 1
        file.start(step=first - 1, attempt=attempt)
        file.step(first, loss=1.0, compute=1.0, wait=50.0)
        for step in range(first + 1, first + 10):
            file.step(step, loss=1.0, compute=0.3, wait=0.1)
    judged = verdict(tmp_path)
    assert judged.num_steps == 18
    assert judged.au == pytest.approx(0.75)
    assert judged.shares["wait"] == pytest.approx(0.25)


def test_gain_is_what_vanishing_gives(tmp_path):
    judged = verdict(run_of(tmp_path, compute=0.3, wait=0.1, copy=0, communication=0, rest=0).path)
    assert judged.predicted_gain == pytest.approx(1 / 3)
    assert "1.33 times" in judged.sentence


def test_compute_bound_promises_nothing(tmp_path):
    assert verdict(run_of(tmp_path).path).predicted_gain is None


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_short_runs_are_too_short_to_tell(tmp_path, num_steps):
    judged = verdict(run_of(tmp_path, num_steps=num_steps).path)
    assert judged.bound == "too short to tell"
    assert judged.au is None
    assert judged.shares == {}


def test_steps_without_their_time_are_unknown(tmp_path):
    file = RunFile(tmp_path)
    for step in range(1, 20):
        file.write("step", step=step, loss=1.0, sec=0.1)
    assert verdict(tmp_path).bound == "unknown"


def test_a_stage_without_time_left_is_the_bottleneck(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.feed(10, {"read": 0.1, "transform": 1.0}, 10_000)
    file.feed(40, {"read": 4.0, "transform": 13.0}, 40_000)
    judged = verdict(tmp_path)
    assert judged.stage == "transform"
    assert "slowest stage is transform" in judged.sentence
    assert any("threads=" in line for line in judged.evidence)
    transform = feed_stages(read_run(tmp_path))[1]
    assert transform.elapsed_sec == pytest.approx(30 * 0.206)
    assert transform.busy_share == pytest.approx(12 / (2 * 30 * 0.206))
    assert transform.items_per_thread_sec == pytest.approx(30_000 / 12)


def test_where_every_stage_has_time_left_none_is_named(tmp_path):
    """The feed is then held up between its stages, and naming one would be a guess."""
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 0.4, "verify": 0.1, "transform": 0.5, "collate": 0.1}, 40_000)
    judged = verdict(tmp_path)
    assert judged.stage is None
    assert any("no stage is busy most of the time" in line for line in judged.evidence)


def test_reading_and_verifying_share_their_threads(tmp_path):
    """Together they leave no time, though neither takes three quarters of it."""
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 3.8, "verify": 4.2, "transform": 2.0}, 40_000)
    assert verdict(tmp_path).stage == "verify"


def test_collate_has_one_thread_to_lose(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.feed(40, {"read": 3.0, "transform": 8.0, "collate": 7.9}, 40_000)
    assert verdict(tmp_path).stage == "collate"


def test_stage_is_not_named_where_the_feed_is_not_the_matter(tmp_path):
    file = run_of(tmp_path)
    file.feed(40, {"read": 0.4}, 40_000)
    assert verdict(tmp_path).stage is None


def test_meters_that_know_little_are_no_obstacle(tmp_path):
    file = run_of(tmp_path, wait=0.1)
    file.write("feed", step=None, stages={"read": {"items": 3}, "odd": None}, threads=None)
    judged = verdict(tmp_path)
    assert judged.bound == "input"
    assert judged.stage is None


def test_verdict_of_a_real_run_is_json(tmp_path):
    judged = verdict(write_run(tmp_path))
    assert judged.bound == "input"
    assert json.loads(json.dumps(judged.to_json()))["bound"] == "input"
    assert replace(judged, bound="copy") != judged


def ranks_of(folder, num_steps=40, **parts_by_rank):
    """Files of ranks other than 0, whose mean step has these parts."""
    (folder / "ranks").mkdir(exist_ok=True)
    for name, parts in parts_by_rank.items():
        rank = int(name.removeprefix("rank"))
        sums = {f"{part}_sec": num_steps * sec for part, sec in {**QUIET, **parts}.items()}
        lines = [
            {"event": "start", "rank": rank, "attempt": 0, "pid": PIDS[rank]},
            {"event": "rank", "rank": rank, "step": num_steps, "steps": num_steps, **sums},
        ]
        (folder / "ranks" / f"rank-{rank}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def test_waiting_for_one_rank_is_no_communication(tmp_path):
    run_of(tmp_path, communication=0.104)
    ranks_of(tmp_path, rank1={"compute": 0.2}, rank2={"communication": 0.104})
    judged = verdict(tmp_path)
    assert (judged.bound, judged.rank) == ("straggler", 1)
    assert judged.predicted_gain == pytest.approx(0.207 / 0.107 - 1, rel=0.02)
    assert "compute" in judged.sentence


def test_communication_that_every_rank_has_is_communication(tmp_path):
    run_of(tmp_path, communication=0.1)
    ranks_of(tmp_path, rank1={"communication": 0.1}, rank2={"communication": 0.099, "compute": 0.101})
    judged = verdict(tmp_path)
    assert (judged.bound, judged.rank) == ("communication", None)


def test_rank_0_may_be_the_one_that_others_wait_for(tmp_path):
    run_of(tmp_path, wait=0.1)
    ranks_of(tmp_path, rank1={"communication": 0.104})
    judged = verdict(tmp_path)
    assert (judged.bound, judged.rank) == ("straggler", 0)
    assert "waiting for data" in judged.sentence


def test_what_every_rank_waits_for_is_the_verdict_if_it_is_more_than_what_one_does_longer(tmp_path):
    parts = {"wait": 0.065, "compute": 0.05, "communication": 0.019}
    run_of(tmp_path, **parts)
    ranks_of(tmp_path, rank1=parts | {"wait": 0.080, "communication": 0.004}, rank2=parts)
    assert straggler(rank_times(read_run(tmp_path))).extra_sec == pytest.approx(0.015)
    assert (verdict(tmp_path).bound, verdict(tmp_path).rank) == ("input", None)


def test_a_stage_that_is_too_large_is_the_pipelines_verdict(tmp_path):
    file = RunFile(tmp_path)
    file.start(mesh="pp=2")
    for step in range(1, 41):
        file.step(step, loss=1.0, **{**QUIET, "communication": 0.1})
    ranks_of(tmp_path, rank1={"compute": 0.19, "communication": 0.01})
    judged = verdict(tmp_path)
    assert (judged.bound, judged.rank) == ("pipeline", 1)
    assert "pp_stages" in judged.sentence


def test_of_an_attempt_that_is_over_ranks_tell_nothing(tmp_path):
    run_of(tmp_path)
    ranks_of(tmp_path, rank1={"compute": 0.2})
    assert read_run(tmp_path).ranks
    RunFile(tmp_path).start(step=40, attempt=0, pids=[5100, 5101, 5102])  # an attempt of the next launch has the number
    assert read_run(tmp_path).ranks == ()


def test_a_rank_that_is_not_there_any_more_tells_nothing(tmp_path):
    run_of(tmp_path)
    ranks_of(tmp_path, rank2={"compute": 0.2})
    RunFile(tmp_path).start(step=40, pids=PIDS[:2])
    assert read_run(tmp_path).ranks == ()


def configured(folder, config, num_steps=40, feed=None, **parts):
    file = RunFile(folder)
    file.start(config=config, pids=[1], machine={"cpus": 8})
    for step in range(1, num_steps + 1):
        file.step(step, loss=1.0, **{**QUIET, **parts})
        if feed is not None and step in (1, num_steps):
            file.feed(step, {"transform": feed(step)}, step * 256, threads=2)
    return verdict(folder)


def test_more_threads_are_predicted_to_help_as_far_as_the_model_lets_them(tmp_path):
    step = sum({**QUIET, "wait": 0.3}.values())
    judged = configured(tmp_path, {"loader": {"threads": 2}}, feed=lambda at: 2 * step * at, wait=0.3)
    [remedy] = judged.remedies
    assert judged.stage == "transform"
    assert remedy.changes == {"loader": {"threads": 8}}
    assert remedy.gain == pytest.approx(step / (step - 0.3) - 1)
    assert remedy.au == pytest.approx(0.1 / (step - 0.3))
    assert any(line.startswith("threads 2 to 8: AU 0.25 to 0.9") for line in judged.evidence)


def test_threads_that_the_loader_tries_out_itself_are_no_remedy(tmp_path):
    step = sum({**QUIET, "wait": 0.3}.values())
    judged = configured(tmp_path, {"loader": {"threads": None}}, feed=lambda at: 2 * step * at, wait=0.3)
    assert judged.remedies == ()


def test_checkpoints_are_made_in_the_background_or_more_seldom(tmp_path):
    judged = configured(tmp_path, {"checkpoint_async": False, "checkpoint_every": 10}, checkpoint=0.1)
    seldom, behind = judged.remedies
    share = judged.shares["checkpoint"]
    assert behind.changes == {"trainer": {"checkpoint_async": True}}
    assert behind.gain == pytest.approx(1 / (1 - 0.9 * share) - 1)
    every = seldom.changes["trainer"]["checkpoint_every"]
    assert share * 10 / every / (1 - share + share * 10 / every) <= 0.02
    assert seldom.gain == pytest.approx(1 / (1 - share + share * 10 / every) - 1)


@pytest.mark.parametrize(
    ("mesh", "engine", "names"),
    [
        ("dp=2", None, ["gradients as bf16"]),
        ("fsdp=2", None, []),
        ("dp=2,fsdp=2", None, []),
        ("dp=2", "horovod", []),
        ("dp=2", "deepspeed", []),
    ],
)
def test_fewer_bytes_are_a_remedy_for_replicas_only(tmp_path, mesh, engine, names):
    file = RunFile(tmp_path)
    file.start(mesh=mesh, config={"compression": None, "engine": engine})
    for step in range(1, 41):
        file.step(step, loss=1.0, **{**QUIET, "communication": 0.1})
    assert [remedy.name for remedy in verdict(tmp_path).remedies] == names


def test_processors_are_shared_by_the_ranks_of_their_machine(tmp_path):
    run = RunFile(tmp_path)
    run.start(pids=list(range(16)), machine={"cpus": 32, "local_ranks": 8})
    run.step(1, loss=1.0)
    assert Case(read_run(tmp_path), {}, [], None).cores == 4


def test_a_step_that_takes_the_host_as_long_as_the_device_is_launch_bound(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in range(1, 41):
        parts = {f"{name}_sec": sec for name, sec in QUIET.items()}
        file.write("step", step=step, loss=1.0, samples=8, sec=sum(QUIET.values()), launch_sec=0.103, **parts)
    assert verdict(tmp_path).bound == "launch"
