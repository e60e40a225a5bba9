"""The page's sections, each from the run alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from headrace.report import formatting as fmt
from headrace.report import side_by_side
from headrace.report.beside import SKIPPED_FOLDER, Beside, Paces
from headrace.report.facts import Fact
from headrace.report.figures import render, shared
from headrace.report.flow import flow
from headrace.report.host import body as host_body
from headrace.report.host_charts import host_charts
from headrace.report.incidents import Incident
from headrace.report.paces import body as pace_body
from headrace.report.paces import course as pace_course
from headrace.report.paces import lead as pace_lead
from headrace.report.parts import part_css, part_name
from headrace.report.plots import (
    MOST_METRICS,
    Detail,
    loss_chart,
    marks_of,
    metric_charts,
    metric_names,
    throughput_chart,
    time_chart,
)
from headrace.report.quantities import quantity_charts, quantity_names
from headrace.report.ranks import rank_times
from headrace.report.runlog import PARTS, Run
from headrace.report.stages import Stage, feed_stages
from headrace.report.verdict import Verdict

_MOST_EVENTS = 60


def time(run: Run, judged: Verdict, happened: Sequence[Incident]) -> str:
    """Where the time went: in total, and over the steps."""
    if not judged.shares:
        return ""
    wall = float(run.steps["sec"][run.steady_rows()].sum())
    shares = judged.shares | _shares_of_compute(run, judged)
    bar = "".join(
        f'<span class="{part_css(part)}" style="flex:{shares[part]:.5f}"></span>'
        for part in run.parts
        if shares.get(part)
    )
    rows = [
        _part_row(part, shares[part], wall, judged.num_steps, run.parts) for part in _rows_of(run) if part in shares
    ]
    rows.append(
        _row(f"all of {fmt.count(judged.num_steps)} steps", *_time_cells(1, wall, judged.num_steps), css="strong")
    )
    beside = "; ".join(f"{name} {fmt.seconds(sec)}" for name, sec in _beside(run, wall) if sec)
    chart = render(time_chart(run, marks_of(happened), _detail(run)))
    return _section(
        "Where the time went",
        "The wall time of every step but the first of each start.",
        f'<div class="card"><div class="split" aria-hidden="true">{bar}</div>'
        f"{_table(('part', 'share', 'in all', 'a step'), rows)}"
        f'<p class="note">{f"Not in it: {beside}." if beside else ""}</p></div>{chart}',
    )


def _rows_of(run: Run) -> Iterable[str]:
    """Compute first, then what it is made of where the run tells that, then the others."""
    yield PARTS[0]
    yield from (part for part in run.parts if part != PARTS[0])


def _shares_of_compute(run: Run, judged: Verdict) -> dict[str, float]:
    """Compute's share, dealt out to its parts as their seconds are."""
    rows = run.steady_rows()
    sums = {part: float(np.nansum(run.steps[f"{part}_sec"][rows])) for part in run.parts if part not in PARTS}
    whole = sum(sums.values())
    return {part: judged.shares[PARTS[0]] * sec / whole for part, sec in sums.items()} if whole else {}


def _part_row(part: str, share: float, wall: float, num_steps: int, drawn: Sequence[str]) -> str:
    swatch = f'<i class="swatch {part_css(part)}"></i>' if part in drawn else ""
    css = "" if part in PARTS else "within"
    return _row(f"{swatch}{part_name(part)}", *_time_cells(share, wall, num_steps), css=css)


def _time_cells(share: float, wall: float, num_steps: int) -> tuple[str, str, str]:
    return fmt.percent(share), fmt.seconds(share * wall), fmt.seconds(share * wall / num_steps)


def _beside(run: Run, wall: float) -> Iterable[tuple[str, float]]:
    yield "the first step of each start", float(run.steps["sec"].sum()) - wall
    yield "evaluation", sum(fmt.as_float(event.get("sec")) or 0.0 for event in run.evaluations)
    yield "steps that were done again", run.lost_sec


def curves(run: Run, happened: Sequence[Incident]) -> str:
    """Loss, metrics and throughput over the steps."""
    if not run.num_steps:
        return ""
    marks, detail = marks_of(happened), _detail(run)
    metrics = metric_charts(run, marks, detail)
    pair = f'<div class="pair">{"".join(map(render, metrics))}</div>' if metrics else ""
    more = len(metric_names(run)) - MOST_METRICS
    if more > 0:
        pair += f'<p class="note">{fmt.plural(more, "more metric")}: in the run\'s {escape(run.path.name)}.</p>'
    loss = _section("Loss and metrics" if metrics else "Loss", "", render(loss_chart(run, marks, detail)) + pair)
    began = fmt.as_float(run.attempts[0].start.get("time")) if run.attempts else None
    data = shared(marks, run.steps["step"], run.steps["time"], began)
    beside = "".join(map(render, quantity_charts(run, marks, detail)))
    pair = f'<div class="pair">{beside}</div>' if beside else ""
    return loss + _section("Throughput", "", render(throughput_chart(run, marks, detail)) + pair) + data


def _detail(run: Run) -> Detail:
    return Detail.of(min(len(metric_names(run)), MOST_METRICS) + len(quantity_names(run)) + 4)


def feed(run: Run, judged: Verdict) -> str:
    """The feed's stages, in the order of the flow."""
    stages = feed_stages(run)
    if not stages:
        return ""
    last = run.feeds[-1]
    known = [key for key in ("dropped", "padded", "skipped") if key in last]
    counts = ", ".join(f"{fmt.count(fmt.as_float(last[key]))} {key}" for key in known)
    head = "stage", "items", "rate", "bytes", "busy", "waiting", "threads at work", "a thread makes"
    return _section(
        "The feed, stage by stage",
        "Samples a second of each stage, and up to how many its threads could make if they never waited.",
        f'<div class="card">{flow(stages, judged.shares.get("wait"))}'
        '<p class="note">On rank 0, since the last start.'
        f"{f' Samples: {counts}.' if counts else ''}</p>"
        f"<details><summary>As a table</summary>{_table(head, [_stage_row(stage) for stage in stages])}"
        '<p class="note">Seconds are summed over threads. The last column is what one thread makes in a second of work.'
        "</p></details></div>",
    )


def _stage_row(stage: Stage) -> str:
    work = fmt.number(stage.busy_threads, 2)
    if stage.busy_share is not None:
        bar = f'<i class="meter"><span style="width:{100 * stage.busy_share:.0f}%"></span></i>'
        work = f"{bar}{work} of {fmt.count(stage.threads)}"
    return _row(
        escape(stage.name),
        fmt.count(stage.items),
        fmt.rate(stage.items_per_sec, ""),
        fmt.num_bytes(stage.bytes_per_sec) + ("/s" if stage.bytes_per_sec else ""),
        fmt.seconds(stage.busy_sec),
        fmt.seconds(stage.wait_sec),
        work,
        fmt.rate(stage.items_per_thread_sec, ""),
    )


def history(happened: Sequence[Incident]) -> str:
    """Starts, checkpoints, evaluations, alarms, replaced processes, stops and errors, in the order of time."""
    if not happened:
        return ""
    began = happened[0].time
    half = _MOST_EVENTS // 2
    shown = happened if len(happened) <= _MOST_EVENTS else [*happened[:half], *happened[-half:]]
    rows = [
        _row(
            fmt.seconds(one.time - began) if one.time and began else fmt.UNKNOWN,
            fmt.count(one.step),
            f'<td class="left"><i class="dot {one.kind}"></i>{escape(one.title)}</td>'
            f'<td class="left wrap">{escape(one.detail)}</td>',
        )
        for one in shown
    ]
    hidden = f"{len(happened) - len(shown):,} events in the middle are not shown." if len(shown) < len(happened) else ""
    head = "after", "step", '<th class="left">event</th>', '<th class="left">detail</th>'
    return _section(
        "What happened", "", f'<div class="card events">{_table(head, rows)}<p class="note">{hidden}</p></div>'
    )


def ranks(run: Run, paces: Paces | None, happened: Sequence[Incident]) -> str:
    """The ranks side by side, where more than one has told of itself, and how their pace went."""
    times = rank_times(run) if run.ranks else []
    if len(times) > 1:
        course = pace_course(paces, marks_of(happened)) if paces is not None else ""
        return _section("Ranks side by side", side_by_side.lead(times), side_by_side.body(times) + course)
    if paces is not None:
        return _section("Ranks side by side", pace_lead(paces), pace_body(paces, marks_of(happened)))
    return ""


def machine(run: Run, beside: Beside, happened: Sequence[Incident]) -> str:
    """What the machine was busy with, where the run looked: in all, and along the steps."""
    if not beside.hosts:
        return ""
    charts = "".join(map(render, host_charts(run, beside.hosts, marks_of(happened))))
    pair = f'<div class="pair">{charts}</div>' if charts else ""
    return _section("The machine", "What it was busy with while the run went on.", host_body(beside.hosts) + pair)


def skipped(beside: Beside) -> str:
    """The damaged samples that were left out, where there are any."""
    if not beside.num_skipped:
        return ""
    shown = beside.skipped
    rows = [
        _row(
            escape(one.rank),
            f'<td class="left wrap">{escape(one.key)}</td><td class="left wrap">{escape(one.reason)}</td>',
        )
        for one in shown
    ]
    more = beside.num_skipped - len(shown)
    note = f"{more:,} more are in the run's {SKIPPED_FOLDER} folder." if more else ""
    head = "rank", '<th class="left">key</th>', '<th class="left">why</th>'
    return _section(
        "Samples that were skipped",
        f"{fmt.plural(beside.num_skipped, 'damaged sample')} left out; one of them may stand here once for each time.",
        f'<div class="card events">{_table(head, rows)}<p class="note">{note}</p></div>',
    )


def facts(run: Run) -> str:
    """What the last start said of configuration, versions and machine."""
    if not run.attempts:
        return ""
    start = run.attempts[-1].start
    names = ("world_size", "mesh", "precision", "global_batch_size", "total_steps")
    cards = {
        "Run": {name.replace("_", " "): start[name] for name in names if name in start},
        "Configuration": _flat(start.get("config")),
        "Versions": _flat(start.get("versions")),
        "Machine": _flat(start.get("machine")),
    }
    body = "".join(
        f'<div class="card"><h3>{title}</h3><table><tbody>'
        + "".join(_row(escape(name), escape(Fact("configuration", name, value).text)) for name, value in values.items())
        + "</tbody></table></div>"
        for title, values in cards.items()
        if values
    )
    return _section("Configuration, versions, machine", "", f'<div class="columns">{body}</div>')


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, their names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in (values if isinstance(values, dict) else {}).items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _section(title: str, what: str, body: str) -> str:
    lead = f'<p class="what">{what}</p>' if what else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>"


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(name if name.startswith("<th") else f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(head: str, *cells: str, css: str = "") -> str:
    """A row of HTML that is already escaped; a cell that is more than text brings its own tags."""
    body = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{css}"><th>{head}</th>{body}</tr>'
