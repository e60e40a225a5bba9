"""The ranks of a run side by side: a bar for each, of the parts of its mean step.

Ranks take their steps together, so their bars are about as long; what tells them apart is how much of a step each does
itself, and how much it waits for the others, which is communication.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.report import formatting as fmt
from headrace.report.parts import part_css, part_name
from headrace.report.ranks import RankTime, straggler
from headrace.report.runlog import PARTS

_MOST_RANKS = 16


def lead(times: Sequence[RankTime]) -> str:
    """What stands above the bars, in a sentence."""
    slow = straggler(times)
    if slow is not None:
        return (
            f"The others wait for rank {slow.rank}: of a step it does "
            f"{fmt.seconds(slow.others_sec + slow.extra_sec)} itself, they {fmt.seconds(slow.others_sec)}. "
            f"It has more of: {part_name(slow.part)}."
        )
    own = [one.own_sec for one in times]
    return f"None holds up the others: of a step each does {fmt.seconds(min(own))} to {fmt.seconds(max(own))} itself."


def body(times: Sequence[RankTime]) -> str:
    """The bars and their numbers. Of many ranks those that do most themselves, in the order of ranks."""
    shown = sorted(sorted(times, key=lambda one: -one.own_sec)[:_MOST_RANKS], key=lambda one: one.rank)
    parts = [part for part in PARTS if any(one.parts[part] for one in shown)]
    slow = straggler(times)
    longest = max(one.sec for one in shown)
    rows = "".join(_bar_row(one, parts, longest, slow is not None and one.rank == slow.rank) for one in shown)
    keys = "".join(f'<li><i class="key bars {part_css(part)}"></i>{part_name(part)}</li>' for part in parts)
    few = f"The {len(shown)} of {len(times):,} ranks that do most themselves. " if len(shown) < len(times) else ""
    return (
        f'<div class="card"><ul class="legend">{keys}</ul>'
        f"{_table(('rank', '', 'itself', 'a step'), rows)}"
        f'<p class="note">{few}Means since the last start. What it does itself is its step but for communication, in '
        "which it waits for the others.</p>"
        f"<details><summary>As a table</summary>{_table(('rank', *map(part_name, parts)), _part_rows(shown, parts))}"
        "</details></div>"
    )


def _bar_row(one: RankTime, parts: Sequence[str], longest: float, is_slow: bool) -> str:
    pieces = "".join(
        f'<span class="{part_css(part)}" style="width:{100 * one.parts[part] / longest if longest else 0:.2f}%"></span>'
        for part in parts
        if one.parts[part]
    )
    css = ' class="strong"' if is_slow else ""
    return (
        f'<tr{css}><th>{one.rank}</th><td class="bar"><div class="split thin" aria-hidden="true">{pieces}</div></td>'
        f"<td>{fmt.seconds(one.own_sec)}</td><td>{fmt.seconds(one.sec)}</td></tr>"
    )


def _part_rows(times: Sequence[RankTime], parts: Sequence[str]) -> str:
    return "".join(
        f"<tr><th>{one.rank}</th>{''.join(f'<td>{fmt.seconds(one.parts[part])}</td>' for part in parts)}</tr>"
        for one in times
    )


def _table(head: Sequence[str], rows: str) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
