"""Runs the matrix and writes its table into docs/faults.md: python tests/faults/table.py [PYTEST OPTION]..."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "faults.md"
HEAD = ("fault", "local", "S3", "HTTP", "cache", "lost", "duplicated")
BEGIN, END = "<!-- matrix: python tests/faults/table.py -->\n", "<!-- end of matrix -->"
NEVER = "-"


class Collector:
    """A plugin of pytest that keeps what each cell of the matrix came to."""

    def __init__(self):
        self.cells = {}

    def pytest_runtest_logreport(self, report):
        for name, (fault, place, *found) in report.user_properties:
            if report.when == "call" and name == "cell":
                self.cells[fault, place] = found


def table(cells):
    """The table, from {(fault, place): (outcome, seconds, lost, duplicated)}."""
    faults = list(dict.fromkeys(fault for fault, _ in cells))
    lines = [HEAD, ["---"] * len(HEAD), *(row(fault, cells) for fault in faults)]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def row(fault, cells):
    """A fault's outcome and seconds in each place, and batches lost and duplicated over all of them."""
    found = [cells.get((fault, place.lower())) for place in HEAD[1:5]]
    told = [f"{cell[0]}, {cell[1]:.1f} s" if cell else NEVER for cell in found]
    return [fault, *told, *(sum(cell[at] for cell in found if cell) for at in (2, 3))]


def cells_of(page):
    """What the page's table says: {(fault, place): outcome}, and all that its last two columns hold."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()[2:]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    told = [
        ((cells[0], place.lower()), text) for cells in rows for place, text in zip(HEAD[1:5], cells[1:5], strict=True)
    ]
    assert len(dict(told)) == len(told), "a row is there twice"
    outcomes = {where: text.partition(",")[0] for where, text in told if text != NEVER}
    return outcomes, {number for cells in rows for number in cells[5:]}


def main(options):
    import pytest

    collector = Collector()
    code = pytest.main([str(HERE), "-q", "-k", "costs_no_batch", *options], plugins=[collector])
    if code:
        return code
    from matrix import CELLS  # which the tests' folders have been put on the path for

    if missing := [cell for cell in CELLS if cell not in collector.cells]:
        print(f"{PAGE.name} stays as it is: these cells were not run here, the tests above say why: {missing}")
        return 1
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(collector.cells)}{END}{rest.partition(END)[2]}", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
