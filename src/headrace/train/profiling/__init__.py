"""Profiler traces of some steps of a run, and what they say of idle time.

`options` says which steps; `tracer` begins and ends a trace between steps, on demand or by a signal; `finish`, in a
process of its own, makes a file of it; `summary` reads such files. Needs no torch but in `tracer`.
"""

from headrace.train.profiling.options import Profile
from headrace.train.profiling.summary import profile_summary

__all__ = ["Profile", "profile_summary"]
