"""`headrace train --check`: what bounds a recipe, what would help most, and whether it does.

The recipe is trained for some seconds as it is, with the change, and as it is once more, in folders that are removed
afterwards, and of which nothing goes anywhere else. Where the feed bounds it, its stages are measured apart, as
`headrace bench` does, to predict the change, if it is a feed as that one measures.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.output import emit, stopped_by_sigterm
from headrace.errors import HeadraceError, StorageError

if TYPE_CHECKING:
    from headrace.report import Run, Verdict

_BENCH_TIMES = 2.0
"""So many times as long as it trains it measures the feed."""
_WORTH_TRYING = 0.02


@dataclass(frozen=True)
class Change:
    """What is to be tried, and how many times as many samples/s it is predicted to give."""

    name: str
    how: str
    predicted: float
    changes: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A recipe, as `headrace train` takes it."""

    recipe: str
    settings: tuple[str, ...]
    nproc: int
    seconds: float


def check(subject: Subject, json: bool) -> None:
    """Train for some seconds with and without what would help most, and say what was predicted and what came of it."""
    folder = _folder()
    try:
        with stopped_by_sigterm():
            before = _trained(subject, folder / "before", {})
            judged, rate = _verdict(before), _samples_per_sec(before)
            change = _change(subject, judged, before, rate)
            after = again = None
            if change is not None:
                after = _samples_per_sec(_trained(subject, folder / "after", change.changes))
                again = _samples_per_sec(_trained(subject, folder / "again", {}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    usual = rate if again is None or rate is None else (rate + again) / 2
    achieved = after / usual if after and usual else None
    result = {
        "verdict": judged.sentence,
        "bound": judged.bound,
        "au": judged.au,
        "samples_per_sec": rate,
        "samples_per_sec_again": again,
        "change": None if change is None else change.name,
        "how": None if change is None else change.how,
        "predicted": None if change is None else change.predicted,
        "samples_per_sec_changed": after,
        "achieved": achieved,
    }
    emit(result, json, _text(judged, change, achieved, (rate, again, after)))


def _folder() -> Path:
    try:
        runs = Path("runs")
        runs.mkdir(exist_ok=True)  # where runs go, so that checkpoints are written to the same disk
        return Path(tempfile.mkdtemp(prefix="check-", dir=runs))
    except OSError as err:
        raise StorageError(f"no folder can be made in {Path('runs')}: {err.strerror}") from err


def _trained(subject: Subject, run_dir: Path, changes: Mapping[str, Mapping[str, Any]]) -> Run:
    from headrace.report import read_run
    from headrace.train.launch import launch
    from headrace.train.worker import Job

    run_dir.mkdir()
    words = "with the change" if changes else "as it is"
    print(f"training {words} for {subject.seconds:g} s", file=sys.stderr)
    changed = {part: dict(options) for part, options in changes.items()}
    job = Job(subject.recipe, str(run_dir), "never", subject.settings, seconds=subject.seconds, changes=changed)
    if not launch(job, subject.nproc, max_restarts=0):
        raise KeyboardInterrupt  # what launch was told is meant for all of the runs
    return read_run(run_dir)


def _verdict(run: Run) -> Verdict:
    from headrace.report import verdict

    return verdict(run)


def _change(subject: Subject, judged: Verdict, run: Run, rate: float | None) -> Change | None:
    """The one with the largest predicted gain that can be made here."""
    found = [Change(one.name, one.how, 1 + one.gain, one.changes) for one in judged.remedies if one.changes]
    if judged.bound == "input" and rate is not None:
        found = _feed_changes(subject, judged, run, rate) or found
    worth = [one for one in found if one.predicted >= 1 + _WORTH_TRYING]
    return max(worth, key=lambda one: one.predicted, default=None)


def _feed_changes(subject: Subject, judged: Verdict, run: Run, rate: float) -> list[Change]:
    """By measuring the feed's stages apart, as far as the steps would still wait for it."""
    from headrace.bench import DECODED, measure

    loader = _loader(subject)
    if subject.nproc > 1 or not _is_measured_as_it_is(loader):
        return []
    seconds = _BENCH_TIMES * subject.seconds
    print(f"measuring the feed for {seconds:g} s", file=sys.stderr)
    feeds = run.feeds[-1] if run.feeds else {}
    try:
        bench = measure(
            loader.stream, batch_size=loader.global_batch_size, threads=feeds.get("threads"), seconds=seconds
        )
    except HeadraceError as err:
        print(f"the feed cannot be measured apart: {err}", file=sys.stderr)
        return []
    most = rate / (1 - judged.shares["wait"]) if judged.shares["wait"] < 1 else float("inf")
    found = []
    for one in bench.remedies:
        options: dict[str, Any] = {"threads": one.threads, "processes": one.processes}
        if one.name == DECODED:
            options = {"cache_decoded": "ram"}
        chosen = {name: value for name, value in options.items() if value is not None}
        if chosen:
            found.append(Change(one.name, one.how, min(most, rate * one.gain) / rate, {"loader": chosen}))
    return found


def _is_measured_as_it_is(loader: Any) -> bool:
    """Whether the bench's own loader makes batches as this one does: what it cannot do it would predict wrongly."""
    from headrace.load import Loader

    if not isinstance(loader, Loader):
        return False
    options = loader.options
    plain = options["processes"] == 1 and options["collate"] is None and options["memory"] is None
    return plain and options["cache_decoded"] in (None, "auto")


def _loader(subject: Subject) -> Any:
    """The recipe's loader, made here to be looked at."""
    from headrace.train.recipe import RecipeTarget, load_recipe
    from headrace.train.settings import parse_settings

    function = load_recipe(RecipeTarget.parse(subject.recipe))
    return function(**parse_settings(function, subject.settings)).loader


def _samples_per_sec(run: Run) -> float | None:
    """Over all steps that tell of the run's pace."""
    rows = run.steady_rows()
    sec = float(run.steps["sec"][rows].sum()) if rows.any() else 0.0
    return float(run.steps["samples"][rows].sum()) / sec if sec else None


def _text(judged: Verdict, change: Change | None, achieved: float | None, rates: Sequence[float | None]) -> str:
    if change is None:
        return f"{judged.sentence}\nNothing that can be changed here is predicted to help."
    before, again, after = (f"{rate:,.0f}" if rate else "unknown" for rate in rates)
    came = "unknown" if achieved is None else f"{achieved:.2f}"
    return (
        f"{judged.sentence}\n{change.name} ({change.how})\n"
        f"predicted {change.predicted:.2f} times as many samples/s, achieved {came}: {after} samples/s, "
        f"as it is {before} before and {again} after"
    )
