"""From a run's events, and nothing else: what bounds it, and a page that shows it."""

from headrace.report.page import write_page
from headrace.report.runlog import Run, read_run
from headrace.report.stages import Stage, feed_stages
from headrace.report.verdict import Verdict, verdict

__all__ = ["Run", "Stage", "Verdict", "feed_stages", "read_run", "verdict", "write_page"]
