"""A run under way on one screen of a terminal: how far it is, what bounds it, and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.report import formatting as fmt
from headrace.report.follow import Present, silence_sec
from headrace.report.runlog import PARTS, Event
from headrace.report.stages import feed_stages
from headrace.report.verdict import verdict

_COLORS = {
    "compute": "green",
    "communication": "magenta",
    "copy": "cyan",
    "wait": "red",
    "guard": "cyan",
    "checkpoint": "yellow",
    "rest": "bright_black",
}
_BAR = 50
_HEIGHTS, _PLAIN_HEIGHTS = "▁▂▃▄▅▆▇█", "_.-=+*#%"


def screen(present: Present, console: Console) -> RenderableType:
    """All of it. Colours and block characters are used as far as the console has them."""
    plain = not console.encoding.lower().startswith("utf")
    judged = verdict(present.run())
    parts: list[RenderableType] = [_head(present), _progress(present, plain), _learning(present, plain)]
    if judged.shares:
        parts += [_split(judged.shares, plain)]
    parts += [Text(judged.sentence, style="bold"), *_feed(present), *_happened(present)]
    return Group(*parts)


def line(present: Present) -> str:
    """The same in a line, for an output that is no terminal."""
    words = [f"{present.state}, {_steps(present)}"]
    if present.step is not None:
        words += [f"loss {fmt.number(present.step.get('loss'))}", fmt.rate(present.samples_per_sec, "samples")]
        words += [verdict(present.run()).sentence.partition(".")[0]]
    if present.alarm is not None:
        words.append(_alarm(present.alarm))
    return "; ".join(words)


def _head(present: Present) -> Text:
    text = Text(str(present.path.parent), style="bold")
    text.append(f"  {present.state}", style="" if present.state in ("running", "complete") else "bold red")
    if present.state == "running" and (silence := silence_sec(present)) is not None and silence > 5:
        text.append(f", no step for {fmt.seconds(silence)}")
    if present.num_restarts:
        text.append(f", started again {fmt.plural(present.num_restarts, 'time')}")
    return text


def _steps(present: Present) -> str:
    done = 0 if present.step is None else present.step["step"]
    return f"step {fmt.count(done)}" + (f" of {fmt.count(present.total_steps)}" if present.total_steps else "")


def _progress(present: Present, plain: bool) -> Text:
    text = Text(_steps(present))
    if present.total_steps:
        done = 0 if present.step is None else present.step["step"]
        share = min(1.0, done / present.total_steps)
        filled = round(share * _BAR)
        text.append("  " + ("#" if plain else "█") * filled, style="green")
        text.append(("." if plain else "░") * (_BAR - filled), style="bright_black")
        text.append(f"  {fmt.percent(share)}")
        if present.state == "running" and present.sec_left:
            text.append(f", {fmt.seconds(present.sec_left)} left")
    text.append(f"\n{fmt.rate(present.samples_per_sec, 'samples')}, {fmt.seconds(present.sec_per_step)} a step")
    return text


def _learning(present: Present, plain: bool) -> Text:
    step = present.step or {}
    text = Text(f"loss {fmt.number(step.get('loss'))}  ")
    text.append(trend(present.loss.points, _BAR, plain), style="blue")
    text.append(f"  lr {fmt.number(step.get('lr'), 3)}")
    if step.get("grad_norm") is not None:
        text.append(f", gradient norm {fmt.number(step['grad_norm'], 3)}")
    return text


def trend(values: Sequence[float], width: int, plain: bool) -> str:
    """Values as a row of bars of different heights, at most `width` of them; the lowest is the lowest value."""
    if not values:
        return ""
    heights = _PLAIN_HEIGHTS if plain else _HEIGHTS
    count = min(width, len(values))
    bounds = [len(values) * number // count for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(heights[min(len(heights) - 1, int((mean - low) / span * len(heights)))] for mean in means)


def _split(shares: dict[str, float], plain: bool) -> Text:
    text = Text("time  ")
    ends = [round(_BAR * sum(shares[part] for part in PARTS[: number + 1])) for number in range(len(PARTS))]
    for part, begin, end in zip(PARTS, [0, *ends], ends, strict=False):
        text.append((part[0] if plain else "█") * (end - begin), style=_COLORS[part])
    shown = [part for part in PARTS if shares[part] >= 0.005]
    for part in shown:
        text.append(f"  {part} {fmt.percent(shares[part])}", style=_COLORS[part])
    return text


def _feed(present: Present) -> list[RenderableType]:
    stages = feed_stages(present.run())
    if not stages:
        return []
    table = Table(box=None, pad_edge=False, header_style="bright_black")
    table.add_column("feed")
    for title in ("threads at work", "rate", "bytes"):
        table.add_column(title, justify="right")
    for stage in stages:
        at_work = f"{fmt.number(stage.busy_threads, 2)} of {fmt.count(stage.threads)}"
        rate = fmt.rate(stage.items_per_sec, "samples")
        size = fmt.UNKNOWN if stage.bytes_per_sec is None else f"{fmt.num_bytes(stage.bytes_per_sec)}/s"
        table.add_row(stage.name, at_work, rate, size)
    return [table]


def _happened(present: Present) -> list[Text]:
    lines = []
    if (found := present.evaluation) is not None:
        values = {"loss": found.get("loss"), **(found.get("metrics") or {})}
        shown = ", ".join(f"{name} {fmt.number(fmt.as_float(value))}" for name, value in values.items())
        lines.append(Text(f"evaluated after step {fmt.count(found.get('step'))}: {shown}"))
    if (saved := present.checkpoint) is not None:
        lines.append(Text(f"saved after step {fmt.count(saved.get('step'))}, {fmt.num_bytes(saved.get('bytes'))}"))
    if present.num_skipped:
        lines.append(Text(f"left out as damaged: {fmt.plural(present.num_skipped, 'sample')}", style="yellow"))
    lines += [Text(_guard(event), style="yellow") for event in present.guards]
    if present.alarm is not None:
        lines.append(Text(_alarm(present.alarm), style="bold red"))
    if present.last is not None and present.last["event"] == "error":
        last = present.last
        lines.append(Text(f"rank {last.get('rank')}: {last.get('type')}: {last.get('message')}", style="bold red"))
    return lines


def _alarm(event: Event) -> str:
    return f"alarm at step {fmt.count(event.get('step'))}, {fmt.moment(event.get('time'))}: {event.get('message')}"


def _guard(event: Event) -> str:
    return f"step {fmt.count(event.get('step'))}: {event.get('guard')}: {event.get('detail')}: {event.get('action')}"
