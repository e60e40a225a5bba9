"""Guards: what can go wrong in a run without an error, found and answered while it trains.

`Guards` describes them, `Watch` is what the loop calls. None costs a barrier: each decides on numbers that a step has
anyway, or on a few that travel beside the steps and are read later.
"""

from headrace.train.guards.finding import Finding
from headrace.train.guards.options import Guards
from headrace.train.guards.update import RunningStatistics, step_if
from headrace.train.guards.watch import Watch

__all__ = ["Finding", "Guards", "RunningStatistics", "Watch", "step_if"]
