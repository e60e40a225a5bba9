"""compare: what was changed between runs, what came of it, and when they should not be compared."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import RunFile, write_run

from headrace.errors import OptionError, StorageError
from headrace.report import compare, comparison_text, read_run
from headrace.report.facts import Fact
from headrace.telemetry.secrets import without_secrets

PARTS = {"wait": 0.0, "copy": 0.001, "compute": 0.02, "communication": 0.001, "rest": 0.001}


def made(folder, num_steps=60, loss=lambda step: 1.0, end=True, batch=256, threads=2, start=None, **parts):
    """A run whose first step takes a second more, as first steps do."""
    file = RunFile(folder)
    file.start(**(start or {}))
    for step in range(1, num_steps + 1):
        split = {**PARTS, **parts}
        file.step(step, loss(step), batch, **{**split, "rest": split["rest"] + (step == 1)})
    file.feed(num_steps, {"transform": 0.1}, num_steps * batch, threads)
    if end:
        file.write("end", step=num_steps)
    return folder


def configured(**changed):
    return {"config": {"settings": {"data": "digits", "learning_rate": 3e-3, **changed}}}


def changed(compared):
    return {change.name: change.values for change in compared.changes}


def test_the_sentence_says_rate_reason_and_change(tmp_path):
    slow, fast = made(tmp_path / "slow", wait=0.010), made(tmp_path / "fast", wait=0.001, threads=6)
    compared = compare(slow, fast)
    assert compared.sentence == (
        "fast makes 1.38 times as many samples/s as slow: it waits less for data (30 % to 4.2 %); "
        "changed: threads 2 to 6."
    )
    assert compare(fast, slow).sentence == (
        "slow makes 0.73 times as many samples/s as fast: it waits more for data (4.2 % to 30 %); "
        "changed: threads 6 to 2."
    )
    assert compared.warnings == ()
    assert changed(compared) == {"threads": ("2", "6")}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {}, "b makes about as many samples/s as a (1.00 times); nothing that their records name was changed."),
        ({"compute": 0.04}, {}, "b makes 1.87 times as many samples/s as a: its compute takes 78.1 µs a sample, not "),
        ({"checkpoint": 0.1}, {}, "it spends less time on writing checkpoints (81 % to 0 %)"),
        # All else fell a little more, so that its share rose: then the time is told.
        (
            {"wait": 0.1, "compute": 0.09},
            {"wait": 0.05, "compute": 0.041},
            "its waiting for data takes 195 µs",
        ),
    ],
)
def test_the_reason_is_the_part_that_changed_most(tmp_path, first, second, words):
    assert words in compare(made(tmp_path / "a", **first), made(tmp_path / "b", **second)).sentence


def test_compute_is_told_apart_where_all_runs_do(tmp_path):
    def split(folder, **shares):
        run = read_run(made(folder, compute=0.03))
        return replace(run, steps={**run.steps, **{f"{name}_sec": s * run.steps["sec"] for name, s in shares.items()}})

    whole = split(tmp_path / "whole")
    slow, fast = (split(tmp_path / str(share), forward=0.2, backward=share, optimizer=0.1) for share in (0.6, 0.3))
    assert compare(slow, fast).table["backward_share"] == pytest.approx((0.6, 0.3))
    assert "compute_share" not in compare(slow, fast).table
    assert compare(slow, whole).table["compute_share"] == pytest.approx((0.9, 0.9), abs=0.02)
    assert "backward_share" not in compare(slow, whole).table


def test_what_steps_count_is_a_rate_and_all_else_a_mean(tmp_path):
    run = read_run(made(tmp_path / "a"))
    columns = {"tokens": 1000 * run.steps["sec"], "mfu": np.where(run.steps["step"] % 2, np.nan, 0.4)}
    compared = compare(made(tmp_path / "b"), replace(run, steps={**run.steps, **columns}))
    assert sorted(compared.quantities) == ["mfu", "tokens_per_sec"]
    assert compared.table["tokens_per_sec"] == (None, pytest.approx(1000))
    assert compared.table["mfu"] == (None, pytest.approx(0.4))
    assert re.search(r"^tokens/s +\N{EN DASH} +1,000$", comparison_text(compared), re.M)


def test_a_sample_is_what_is_compared_not_a_step(tmp_path):
    compared = compare(made(tmp_path / "a", batch=128), made(tmp_path / "b", batch=256, compute=0.04))
    assert "b makes 1.07 times as many samples/s as a" in compared.sentence


@settings(max_examples=12)
@given(st.lists(st.tuples(st.floats(0.001, 0.1), st.integers(5, 30)), min_size=2, max_size=4))
def test_rates_shares_and_losses_are_those_of_each_run_alone(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("runs")
    paths = [made(folder / str(k), steps + 1, lambda step: 1 / step, wait=wait) for k, (wait, steps) in enumerate(runs)]
    compared = compare(*paths)
    for k, (wait, steps) in enumerate(runs):
        sec = wait + sum(PARTS.values())
        assert compared.table["samples_per_sec"][k] == pytest.approx(256 / sec)
        assert compared.table["wait_share"][k] == pytest.approx(wait / sec)
        assert compared.table["wait_sec_per_step"][k] == pytest.approx(wait)
        assert compared.table["wait_sec_ratio"][k] == pytest.approx(wait / runs[0][0])
        assert compared.table["samples_per_sec_ratio"][k] == pytest.approx((runs[0][0] + sum(PARTS.values())) / sec)
        assert sum(row[k] for name, row in compared.table.items() if name.endswith("_share")) == pytest.approx(1)
        assert compared.table["training_sec"][k] == pytest.approx(1 + (steps + 1) * sec)
    assert compared.equal_steps == min(steps for _, steps in runs) + 1
    assert len(set(compared.table["loss_at_equal_steps"])) == 1


def test_at_equal_time_the_faster_run_is_further(tmp_path):
    slow = made(tmp_path / "slow", 100, lambda step: 1 / step, wait=0.023)
    fast = made(tmp_path / "fast", 100, lambda step: 1 / step)
    compared = compare(slow, fast)
    assert compared.equal_sec == pytest.approx(1 + 100 * 0.023)
    slow_loss, fast_loss = compared.table["loss_at_equal_sec"]
    # Of the slow run's 50 steps, and the fast one's 100, the mean over the last 50 / 25.
    assert slow_loss == pytest.approx((1 / 49 + 1 / 50) / 2, rel=0.03)
    assert fast_loss == pytest.approx((1 / 99 + 1 / 100) / 2)


def test_runs_without_a_common_step_have_no_loss_in_common(tmp_path):
    made(tmp_path / "a", 10)
    late = RunFile(tmp_path / "b")
    late.start(step=100)
    for step in range(101, 120):
        late.step(step, 0.5, compute=0.2)
    compared = compare(tmp_path / "a", tmp_path / "b")
    assert compared.equal_steps is None
    assert compared.table["loss_at_equal_steps"] == (None, None)
    assert compared.table["loss_at_equal_sec"] != (None, None)


def test_configuration_is_compared_by_setting_and_argument(tmp_path):
    was = {"config": {"optimizer": "AdamW(lr=0.001, betas=(0.9, 0.95))", "settings": {"depth": 4}, "note": "f(x"}}
    now = {"config": {"optimizer": "AdamW(lr=0.003, betas=(0.9, 0.95))", "settings": {"depth": 8}, "note": "f(y"}}
    now["versions"] = {"headrace": "0.1.0", "torch": "2.14.0", "python": "3.11.7"}
    compared = compare(made(tmp_path / "a", start=was), made(tmp_path / "b", start=now))
    assert changed(compared) == {
        "optimizer.lr": ("0.001", "0.003"),
        "note": ("f(x", "f(y"),
        "settings.depth": ("4", "8"),
        "torch": ("2.13.0", "2.14.0"),
    }
    assert compared.sentence.endswith(
        "changed: optimizer.lr 0.001 to 0.003, note f(x to f(y, depth 4 to 8, and 1 more."
    )


def test_threads_that_were_asked_for_are_told_once(tmp_path):
    asked = [{"config": {"loader": {"threads": threads}}} for threads in (2, 6)]
    compared = compare(made(tmp_path / "a", threads=2, start=asked[0]), made(tmp_path / "b", threads=6, start=asked[1]))
    assert changed(compared) == {"loader.threads": ("2", "6"), "threads": ("2", "6")}
    assert compared.sentence.endswith("changed: threads 2 to 6.")


def test_what_one_record_does_not_name_is_not_said_to_be_changed(tmp_path):
    compared = compare(made(tmp_path / "a"), made(tmp_path / "b", start={"config": None}))
    assert compared.changes
    assert all(None in change.values for change in compared.changes)
    assert "that not all of their records name" in compared.sentence


@pytest.mark.parametrize(
    ("start", "warning"),
    [
        ({"world_size": 4}, "Not a fair comparison: the number of processes differs (a: 2, b: 4)"),
        ({"global_batch_size": 512}, "the global batch differs (a: 256, b: 512), so a step is not as many samples"),
        ({"machine": {"device": "x86_64"}}, "the device differs (a: NVIDIA H200, b: x86_64), so rates are not"),
        ({"data": {"dataset": "12"}}, "the dataset differs (a: 34, b: 12), so losses are not of the same samples"),
        (configured(data="letters") | {"data": None}, "Perhaps not a fair comparison: the setting data differs"),
    ],
)
def test_what_is_not_fair_is_said(tmp_path, start, warning):
    base = {"data": {"dataset": "34"}, **configured()}
    compared = compare(made(tmp_path / "a", start=base), made(tmp_path / "b", start={**base, **start}))
    [found] = compared.warnings
    assert warning in found


def test_what_is_not_finished_or_was_gone_on_with_elsewhere_is_said(tmp_path):
    made(tmp_path / "a", end=False)
    file = RunFile(tmp_path / "a")
    file.start(step=60, world_size=4)
    file.step(61, 1.0, compute=0.02)
    found = compare(made(tmp_path / "b", start={"world_size": 4}), tmp_path / "a").warnings
    assert found == (
        "a went on with other numbers of processes (2, then 4): its rate is over all of them.",
        "a is not finished: what is said of it holds so far.",
    )


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path):
    first = made(tmp_path / "x" / "run")
    for folder in ("y/run", "y/other"):
        shutil.copytree(first, tmp_path / folder)
    assert compare(first, tmp_path / "y/run", tmp_path / "y/other").names == ("x/run", "y/run", "other")


def test_more_than_two_are_compared_to_the_first(tmp_path):
    waits = {"a": 0.02, "b": 0.01, "c": 0.001}
    compared = compare(*(made(tmp_path / name, wait=wait) for name, wait in waits.items()))
    assert compared.sentence.startswith("c makes 1.79 times as many samples/s as a, b 1.30 times; ")


SECRET = "d0nt-t3ll-any1"


@pytest.mark.parametrize(
    "config",
    [
        {"settings": {"api_key": SECRET}},
        {"wandb": {"token": SECRET}},
        {"password": [SECRET]},
        {"settings": {"data": f"s3://user:{SECRET}@host/data"}},
        {"settings": {"data": f"https://host/data?X-Signature={SECRET}"}},
        {"stores": [{"secret": SECRET}]},
        {"store": {"dbPassword": SECRET, "accessToken": SECRET, "APIKey": SECRET, "slack_webhook_url": SECRET}},
        {"client": f"Client('eu', token='{SECRET}')"},
        {"clients": [f"Client(retries=2, inner=Inner(apiKey={SECRET}))"]},
        {"tell": f"https://hooks.slack.com/services/T0/B0/{SECRET}"},
        {"login": "hf_" + SECRET.replace("-", "")},
    ],
)
def test_no_secret_is_shown_but_that_it_changed(tmp_path, config):
    secret = config.get("login", SECRET)
    other = json.loads(json.dumps(config).replace(SECRET, "an-0ther-secret"))
    compared = compare(made(tmp_path / "a", start={"config": config}), made(tmp_path / "b", start={"config": other}))
    assert secret not in json.dumps(compared.to_json())
    assert secret not in comparison_text(compared)
    if "api_key" in json.dumps(config):
        assert compared.sentence.endswith("changed: api_key.")


@pytest.mark.parametrize("name", ["tokens", "batch_tokens", "tokenizer", "sort_key", "monkey", "secretary"])
def test_what_only_sounds_like_a_secret_is_shown(name):
    assert Fact("configuration", name, "shown").text == "shown"


def test_numbers_under_any_name_are_shown():
    assert Fact("configuration", "settings.token", 512).text == "512"
    assert without_secrets("at https://host/a and b?c") == "at https://host/a and b?c"
    assert without_secrets("Loader(token=512, tokens=['a'], password=None)") == (
        "Loader(token=512, tokens=['a'], password=None)"
    )


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.start(),
        lambda file: file.write("step", step=1),
        lambda file: file.write("error", rank=1, step=None, type="ValueError", message="no"),
        lambda file: file.write("evaluate", step=1, loss=None),
        lambda file: [file.step(step, loss=None, wait=0.1) for step in range(1, 4)],
        lambda file: [file.step(step, loss=0.0, batch=0, compute=0.0) for step in range(1, 20)],
        lambda file: [file.write("step", step=step, loss=5.0, sec=0.1) for step in range(1, 20)],
        lambda file: [file.write("step", step=step, loss=5.0) for step in range(1, 20)],
    ],
)
def test_runs_that_hold_little_are_compared_as_far_as_they_go(tmp_path, write):
    write(RunFile(tmp_path / "a"))
    for pair in ((tmp_path / "a", made(tmp_path / "b")), (tmp_path / "b", tmp_path / "a")):
        compared = compare(*pair)
        json.dumps(compared.to_json(), allow_nan=False)
        assert compared.sentence.endswith(".")
        assert "nan" not in comparison_text(compared)


def test_what_cannot_be_compared_is_one_line(tmp_path):
    run = write_run(tmp_path / "a", num_steps=8, crash_at=None)
    with pytest.raises(OptionError, match=r"^2 to 8 runs can be compared: got 1$"):
        compare(run)
    with pytest.raises(OptionError, match=r"^the runs to compare must differ: .*a is given twice$"):
        compare(run, run / "events.jsonl")
    with pytest.raises(StorageError, match=r"no events of a run at .*give the folder of a run"):
        compare(run, tmp_path / "nowhere")
