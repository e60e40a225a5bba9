"""What makes a comparison of runs unfair, or less than it seems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.report.changes import Facts
from headrace.report.runlog import Run

_UNFAIR = (
    ("run", "world_size", "the number of processes", "rates are not of the same hardware"),
    ("machine", "device", "the device", "rates are not of the same hardware"),
    ("machine", "devices", "the number of devices", "rates are not of the same hardware"),
    ("machine", "cpus", "the number of CPUs", "rates are not of the same hardware"),
    ("data", "dataset", "the dataset", "losses are not of the same samples"),
    ("run", "global_batch_size", "the global batch", "a step is not as many samples in each"),
)
_NAMES_OF_DATA = ("settings.data", "settings.dataset", "data", "dataset")
_LONGEST = 40


def warnings_about(names: Sequence[str], runs: Sequence[Run], of_each: Sequence[Facts]) -> Iterator[str]:
    """One sentence for each reason to be careful; `names` are the runs, `of_each` what is known of them."""
    for group, name, what, so in _UNFAIR:
        found = [known.get((group, name)) for known in of_each]
        texts = ["" if fact is None else fact.text for fact in found]
        if all(texts) and len(set(texts)) > 1:
            yield f"Not a fair comparison: {what} differs ({_listed(names, texts)}), so {so}."
    if not all(("data", "dataset") in known for known in of_each):
        yield from _about_settings(names, of_each)
    for name, run in zip(names, runs, strict=True):
        yield from _about_one(name, run)


def _about_settings(names: Sequence[str], of_each: Sequence[Facts]) -> Iterator[str]:
    """Where a run's record does not say what it read: a setting may."""
    for setting in _NAMES_OF_DATA:
        found = [known.get(("configuration", setting)) for known in of_each]
        texts = ["" if fact is None else fact.text for fact in found]
        if all(texts) and len(set(texts)) > 1:
            shown = setting.removeprefix("settings.")
            yield f"Perhaps not a fair comparison: the setting {shown} differs ({_listed(names, texts)})."


def _about_one(name: str, run: Run) -> Iterator[str]:
    sizes = dict.fromkeys(attempt.start.get("world_size") for attempt in run.attempts)
    known = [str(size) for size in sizes if size is not None]
    if len(known) > 1:
        yield f"{name} went on with other numbers of processes ({', then '.join(known)}): its rate is over all of them."
    if run.end is None:
        yield f"{name} is not finished: what is said of it holds so far."


def _listed(names: Sequence[str], texts: Sequence[str]) -> str:
    return ", ".join(f"{name}: {_short(text)}" for name, text in zip(names, texts, strict=True))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
