"""From a run's events, and nothing else: what bounds it, and a page that shows it."""

from headrace.report.page import write_page
from headrace.report.ranks import RankTime, rank_times
from headrace.report.remedies import Remedy
from headrace.report.runlog import Run, read_run
from headrace.report.stages import Stage, feed_stages
from headrace.report.verdict import Verdict, verdict

__all__ = [
    "RankTime",
    "Remedy",
    "Run",
    "Stage",
    "Verdict",
    "feed_stages",
    "rank_times",
    "read_run",
    "verdict",
    "write_page",
]
