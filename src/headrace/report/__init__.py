"""From a run's events, and nothing else: what bounds it, how it compares to others, and pages that show it."""

from headrace.report.changes import Change
from headrace.report.comparison import Comparison, compare
from headrace.report.comparison_page import comparison_text, write_comparison
from headrace.report.page import write_page
from headrace.report.ranks import RankTime, rank_times
from headrace.report.remedies import Remedy
from headrace.report.runlog import Run, read_run
from headrace.report.stages import Stage, feed_stages
from headrace.report.verdict import Verdict, verdict

__all__ = [
    "Change",
    "Comparison",
    "RankTime",
    "Remedy",
    "Run",
    "Stage",
    "Verdict",
    "compare",
    "comparison_text",
    "feed_stages",
    "rank_times",
    "read_run",
    "verdict",
    "write_comparison",
    "write_page",
]
