"""Runs side by side: what was changed between them, and what came of it.

The first run is the one that the others are compared to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from headrace.errors import OptionError
from headrace.report.changes import Change, changes_between
from headrace.report.facts import facts
from headrace.report.fairness import warnings_about
from headrace.report.formatting import as_float
from headrace.report.headline import headline
from headrace.report.paired import Curve, common_end, loss_at
from headrace.report.quantities import is_counted, quantity_names
from headrace.report.runlog import Run, read_run
from headrace.report.verdict import Verdict, verdict

MOST_RUNS = 8
_OF_COMPUTE = ("forward", "backward", "optimizer")

Row: TypeAlias = tuple[Any, ...]
"""One value a run, in the order in which they were given; None where it is not known."""


@dataclass(frozen=True)
class Comparison:
    """What was changed between runs and what came of it; made by `compare`."""

    names: tuple[str, ...]
    """The runs' folders, with as many of their parents as it takes to tell them apart."""
    sentence: str
    """Who makes more samples/s, why, and what was changed."""
    warnings: tuple[str, ...]
    """Why the comparison is not fair, or not complete."""
    table: Mapping[str, Row]
    """One value a run for each quantity: seconds, shares of 0 to 1, samples/s over all ranks. See docs/report.md."""
    changes: tuple[Change, ...]
    num_same: int
    """Settings, versions and properties of the machine in which all runs agree."""
    quantities: tuple[str, ...]
    """The rows of the table that tell what steps measure beside loss and time: `weight_per_sec`, `mfu` and the like."""
    equal_steps: int | None
    """The last step that all runs have, at which `loss_at_equal_steps` is taken."""
    equal_sec: float | None
    """The seconds of steps that all runs have, after which `loss_at_equal_sec` is taken."""
    runs: tuple[Run, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the runs themselves, as JSON values."""
        return {
            "runs": list(self.names),
            "sentence": self.sentence,
            "warnings": list(self.warnings),
            "table": {name: list(row) for name, row in self.table.items()},
            "changes": [{"group": c.group, "name": c.name, "values": list(c.values)} for c in self.changes],
            "num_same": self.num_same,
            "equal_steps": self.equal_steps,
            "equal_sec": self.equal_sec,
        }


def compare(*runs: str | Path | Run) -> Comparison:
    """Compare 2 to 8 runs: their folders, their files of events, or what `read_run` gave.

    Raises OptionError for another number of runs and for one that is given twice, StorageError where there is none.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise OptionError(f"2 to {MOST_RUNS} runs can be compared: got {len(runs)}")
    read = tuple(run if isinstance(run, Run) else read_run(run) for run in runs)
    names = _names([run.path for run in read])
    judged = [verdict(run) for run in read]
    curves = [Curve.of(run) for run in read]
    steps, sec = common_end(curves, "steps"), common_end(curves, "sec")
    rates, quantities, shares = _rates(read, judged), _quantities(read), _shares(read, judged)
    times = {**rates, **quantities, **shares, **_part_seconds(rates, shares)}
    table = {**times, **_losses(read, curves, steps, sec), **_metrics(read)}
    of_each = [facts(run) for run in read]
    changes, num_same = changes_between(of_each)
    return Comparison(
        names,
        headline(names, table, changes),
        tuple(warnings_about(names, read, of_each)),
        table,
        changes,
        num_same,
        tuple(quantities),
        None if steps is None else int(steps),
        sec,
        read,
    )


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Of each run the shortest end of its folder's path that no other run's folder has."""
    folders = [path.resolve().parent for path in paths]
    twice = next((path for k, path in enumerate(paths) if folders[k] in folders[:k]), None)
    if twice is not None:
        raise OptionError(f"the runs to compare must differ: {twice.parent} is given twice")
    return tuple(_name(folder, [other for other in folders if other != folder]) for folder in folders)


def _name(folder: Path, others: Sequence[Path]) -> str:
    lengths = range(1, len(folder.parts) + 1)
    ends = (folder.parts[-length:] for length in lengths)
    shortest = next(end for end in ends if all(other.parts[-len(end) :] != end for other in others))
    return "/".join(shortest).replace("//", "/")


def _rates(runs: Sequence[Run], judged: Sequence[Verdict]) -> dict[str, Row]:
    steady = [run.steady_rows() for run in runs]
    counted = [rows & np.isfinite(run.steps["samples"]) for run, rows in zip(runs, steady, strict=True)]
    sec_counted = [float(np.nansum(run.steps["sec"][rows])) for run, rows in zip(runs, counted, strict=True)]
    sec = [float(np.nansum(run.steps["sec"][rows])) for run, rows in zip(runs, steady, strict=True)]
    samples = [float(np.nansum(run.steps["samples"][rows])) for run, rows in zip(runs, steady, strict=True)]
    rates = tuple(map(_over, samples, sec_counted))
    return {
        "verdict": tuple(one.sentence for one in judged),
        "bound": tuple(one.bound for one in judged),
        "finished": tuple(run.end is not None for run in runs),
        "samples_per_sec": rates,
        "samples_per_sec_ratio": _ratios(rates),
        "sec_per_step": tuple(map(_over, sec, (int(rows.sum()) for rows in steady))),
        "au": tuple(one.au for one in judged),
        "steps": tuple(run.num_steps for run in runs),
        "training_sec": tuple(float(np.nansum(run.steps["sec"])) for run in runs),
        "restarts": tuple(run.num_restarts for run in runs),
        "lost_steps": tuple(run.lost_steps for run in runs),
    }


def _quantities(runs: Sequence[Run]) -> dict[str, Row]:
    """What steps measure beside loss and time: what they count a second, and the mean of all else."""
    names = dict.fromkeys(name for run in runs for name in quantity_names(run))
    rows = {name: tuple(_quantity(run, name) for run in runs) for name in names}
    return {f"{name}_per_sec" if is_counted(name) else name: row for name, row in rows.items()}


def _quantity(run: Run, name: str) -> float | None:
    values = run.steps.get(name, np.zeros(0))
    if not len(values):
        return None
    rows = run.steady_rows() & np.isfinite(values)
    of = run.steps["sec"][rows].sum() if is_counted(name) else rows.sum()
    return _over(float(values[rows].sum()), float(of))


def _shares(runs: Sequence[Run], judged: Sequence[Verdict]) -> dict[str, Row]:
    """The time split: the parts that the verdicts know, and what compute is made of where all runs say it."""
    rows: dict[str, Row] = {}
    for part in dict.fromkeys(part for one in judged for part in one.shares):
        finer = {name: [_column_share(run, name) for run in runs] for name in _OF_COMPUTE if part == "compute"}
        if finer and all(None not in shares for shares in finer.values()):
            rows |= {f"{name}_share": tuple(shares) for name, shares in finer.items()}
        else:
            rows[f"{part}_share"] = tuple(one.shares.get(part) for one in judged)
    return rows


def _part_seconds(rates: Mapping[str, Row], shares: Mapping[str, Row]) -> dict[str, Row]:
    """Seconds a step of each part, and what that is over the first run's."""
    rows: dict[str, Row] = {}
    for name, row in shares.items():
        part = name.removesuffix("_share")
        pairs = zip(row, rates["sec_per_step"], strict=True)
        sec = tuple(None if share is None or step is None else share * step for share, step in pairs)
        rows |= {f"{part}_sec_per_step": sec, f"{part}_sec_ratio": _ratios(sec)}
    return rows


def _column_share(run: Run, part: str) -> float | None:
    column, wall = run.steps.get(f"{part}_sec"), run.steps["sec"]
    if column is None:
        return None
    rows = run.steady_rows() & np.isfinite(column) & np.isfinite(wall)
    return _over(float(column[rows].sum()), float(wall[rows].sum()))


def _losses(runs: Sequence[Run], curves: Sequence[Curve], steps: float | None, sec: float | None) -> dict[str, Row]:
    ends = [float(curve.steps[-1]) if len(curve.steps) else None for curve in curves]
    return {
        "loss": tuple(loss_at([curve], "steps", end)[0] for curve, end in zip(curves, ends, strict=True)),
        "loss_at_equal_steps": tuple(loss_at(curves, "steps", steps)),
        "loss_at_equal_sec": tuple(loss_at(curves, "sec", sec)),
    }


def _metrics(runs: Sequence[Run]) -> dict[str, Row]:
    """Of the last evaluation of each run, and of its last steps that have one, by name."""
    last = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    evaluated = [{"loss": event.get("loss"), **(event.get("metrics") or {})} if event else {} for event in last]
    trained = [{name: _last(values) for name, values in run.metrics.items()} for run in runs]
    return {**_by_name("evaluation", evaluated), **_by_name("training", trained)}


def _by_name(prefix: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Row]:
    names = dict.fromkeys(name for values in found for name in values)
    return {f"{prefix} {name}": tuple(as_float(values.get(name)) for values in found) for name in names}


def _last(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def _ratios(row: Row) -> Row:
    """Each over the first."""
    return tuple(None if value is None else _over(value, row[0] or 0.0) for value in row)


def _over(amount: float, of: float) -> float | None:
    return amount / of if of > 0 else None
