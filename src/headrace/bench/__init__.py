"""What a feed does on this machine: its stages apart, its real rate, what bounds it, and what would help.

`measure` and `compare_feed` need torch, as the loader does.
"""

from headrace.bench.compare import compare_feed
from headrace.bench.comparison import Comparison
from headrace.bench.measure import measure
from headrace.bench.plot import draw
from headrace.bench.rates import Rate
from headrace.bench.result import Bench, Remedy, Stage
from headrace.bench.variants import DECODED

__all__ = ["DECODED", "Bench", "Comparison", "Rate", "Remedy", "Stage", "compare_feed", "draw", "measure"]
