"""One self-contained HTML page about a run: no network, no other files, readable without JavaScript.

It opens with the verdict, then shows what the verdict rests on. Everything that comes from the run is escaped, and a
content security policy forbids the page to fetch or run anything else.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from headrace.errors import StorageError
from headrace.report import formatting as fmt
from headrace.report import sections
from headrace.report.beside import Beside, read_beside
from headrace.report.incidents import incidents
from headrace.report.runlog import Run, events_path, read_run
from headrace.report.verdict import Verdict, verdict

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

# For the script's charts: it is shown where that runs.
KEYS = (
    '<p class="note" id="keys">Charts along the same axis zoom together: drag across one, or use its buttons; a '
    "double click shows all. Zoomed in far enough, they show what lies beyond a scale too. "
    "<span>On the keyboard: <kbd>←</kbd> <kbd>→</kbd> <kbd>Home</kbd> <kbd>End</kbd> read values (with "
    "<kbd>Shift</kbd> in long strides), <kbd>+</kbd> and <kbd>-</kbd> zoom, <kbd>0</kbd> shows all.</span></p>"
)


def write_page(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a run (its folder, or its file of events); gives its path.

    Without `output` it is `report.html` beside the events. An older page is replaced. Raises StorageError where there
    is no run, or where the page cannot be written.
    """
    path = Path(output) if output is not None else events_path(run).parent / "report.html"
    text = page(read_run(run))
    try:
        path.write_text(text, "utf-8")
    except OSError as err:
        raise StorageError(f"cannot write the report to {path}: {err.strerror}") from err
    return path


def page(run: Run) -> str:
    """The page as HTML."""
    return document(*content(run, read_beside(run.path)))


def content(run: Run, beside: Beside) -> tuple[str, str]:
    """The page's title as plain text, and its body as HTML."""
    judged = verdict(run)
    happened = incidents(run, beside.alarms)
    name = escape(run.path.resolve().parent.name)
    charts = sections.time(run, judged, happened) + sections.curves(run, happened)
    body = "".join(
        (
            _head(run, judged, name),
            _tiles(run, judged),
            KEYS if charts else "",
            charts,
            sections.feed(run, judged),
            sections.ranks(run, beside.paces, happened),
            sections.history(happened),
            sections.machine(run, beside, happened),
            sections.skipped(beside),
            sections.facts(run),
        )
    )
    footer = (
        f"<footer>Written by headrace from the run's {escape(run.path.name)}. "
        "KB, MB and GB are powers of 1000, GiB is 2<sup>30</sup> bytes.</footer>"
    )
    return f"{run.path.resolve().parent.name}: {judged.sentence}", body + footer


def document(title: str, body: str, *, policy: str = POLICY, style: str = "", script: str = "", above: str = "") -> str:
    """A whole page around a body of HTML, with the style and the scripts of all pages; the title is plain text.

    `style` comes after that of all pages and `script` before their scripts; `above` is HTML that stands above the body.
    """
    early = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>"
        f"<style>{asset('vendor/uplot/uPlot.min.css')}{asset('page.css')}{style}</style></head>"
        f"<body>{above}<main>{body}</main>{early}"
        f"<script>/*\n{asset('vendor/uplot/LICENSE')}\n*/\n{asset('vendor/uplot/uPlot.iife.min.js')}</script>"
        f"<script>{asset('numbers.js')}</script><script>{asset('charts.js')}</script></body></html>"
    )


def asset(name: str) -> str:
    """A file that lies beside this module."""
    return files("headrace.report").joinpath(name).read_text("utf-8")


def _head(run: Run, judged: Verdict, name: str) -> str:
    start = run.attempts[0].start if run.attempts else {}
    state, css = _state(run)
    first, _, others = judged.sentence.partition(". ")
    term, colon, detail = first.partition(": ")
    failure = _failure(run) if css == "failed" else ""
    headline = f"<em>{escape(term)}</em>{colon}{escape(detail)}" if colon else escape(first)
    evidence = "".join(f"<li>{escape(line)}</li>" for line in judged.evidence)
    return (
        f'<header><div class="top"><span>headrace run <strong>{name}</strong></span>'
        f'<span>{fmt.moment(start.get("time"))}</span><span class="state {css}">{state}</span></div>'
        f"<h1>{_unbroken(headline)}{'.' if others else ''}</h1>{failure}"
        + (f'<p class="lead">{_unbroken(escape(others))}</p>' if others else "")
        + (f'<ul class="evidence">{_unbroken(evidence)}</ul>' if evidence else "")
        + "</header>"
    )


def _failure(run: Run) -> str:
    error = run.errors[-1]
    step = "" if error.get("step") is None else f"at step {error['step']} "
    where = f"{step}on rank {error.get('rank')}"
    text = f"It failed {where}: {error.get('type')}: {error.get('message')}"
    return f'<p class="lead failure">{escape(text)}</p>'


def _unbroken(text: str) -> str:
    """No line break between a number and its per cent sign."""
    return re.sub(r"(?<=\d) %", "&nbsp;%", text)


def _state(run: Run) -> tuple[str, str]:
    if run.end is not None:
        return "finished", "finished"
    if run.errors and run.errors[-1].get("time", 0) >= (run.attempts[-1].start.get("time", 0) if run.attempts else 0):
        return "failed", "failed"
    began = run.attempts[-1].start.get("time", 0) if run.attempts else 0
    stopped = any(stop.get("time", 0) >= began for stop in run.stops)
    return ("stopped" if stopped else "not finished"), "open"


def _tiles(run: Run, judged: Verdict) -> str:
    steps = run.steps
    epochs = int(steps["epoch"][-1]) + 1 if run.num_steps and steps["epoch"][-1] >= 0 else None
    total = run.attempts[-1].start.get("total_steps") if run.attempts else None
    tiles = [
        (
            "Steps",
            fmt.count(run.num_steps),
            f"of {fmt.count(total)}" if total and total != run.num_steps else fmt.plural(epochs, "epoch"),
        ),
        ("Throughput", fmt.number(_samples_per_sec(run)), "samples/s over all ranks"),
        ("Accelerator utilization", fmt.percent(judged.au), "compute over wall time"),
    ]
    tiles += _result_tiles(run)
    tiles.append(("Time", fmt.seconds(_wall_sec(run)), _restarts(run)))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _result_tiles(run: Run) -> list[tuple[str, str, str]]:
    if run.evaluations:
        last = run.evaluations[-1]
        values = {"loss": last.get("loss"), **(last.get("metrics") or {})}
        note = f"evaluation at step {fmt.count(last.get('step'))}"
        return [
            (f"Evaluation {name}", fmt.number(fmt.as_float(value)), note) for name, value in list(values.items())[:3]
        ]
    loss = float(run.steps["loss"][-1]) if run.num_steps else None
    return [("Training loss", fmt.number(loss), "at the last step")]


def _samples_per_sec(run: Run) -> float | None:
    rows = run.steady_rows()
    rows &= np.isfinite(run.steps["samples"])  # batches may not show how many they have
    sec, samples = run.steps["sec"][rows].sum(), run.steps["samples"][rows].sum()
    return float(samples / sec) if sec > 0 else None


def _wall_sec(run: Run) -> float | None:
    start = run.attempts[0].start.get("time") if run.attempts else None
    return run.last_time - start if start and run.last_time else None


def _restarts(run: Run) -> str:
    if not run.num_restarts:
        return "no restart"
    lost = f", {fmt.plural(run.lost_steps, 'step')} done again" if run.lost_steps else ", no step lost"
    return fmt.plural(run.num_restarts, "restart") + lost
