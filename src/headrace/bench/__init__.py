"""What a feed does on this machine: its stages apart, its real rate, what bounds it, and what would help.

`measure` needs torch, as the loader does.
"""

from headrace.bench.measure import measure
from headrace.bench.plot import draw
from headrace.bench.rates import Rate
from headrace.bench.result import Bench, Remedy, Stage
from headrace.bench.variants import DECODED

__all__ = ["DECODED", "Bench", "Rate", "Remedy", "Stage", "draw", "measure"]
