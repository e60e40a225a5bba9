"""Alarms: rules over a run's events that say when somebody should look at it.

`Alarms` says what rings; `judged` applies the rules that need the events only to a run that is over; `Watcher` applies
all of them while a run goes on, in a thread of its own.
"""

from headrace.alarms.judge import Alarm, judged
from headrace.alarms.options import Alarms
from headrace.alarms.watcher import Watcher

__all__ = ["Alarm", "Alarms", "Watcher", "judged"]
