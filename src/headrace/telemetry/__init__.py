"""Events and meters: what every stage counts, and the one file a run writes."""

from headrace.telemetry.events import FILE_NAME, RANKS, EventWriter, parse_event, read_events
from headrace.telemetry.host import HostMeter
from headrace.telemetry.meters import Meter, Reading
from headrace.telemetry.parts import num_bytes, read_lines
from headrace.telemetry.progress import progress, silent
from headrace.telemetry.tail import Tail

__all__ = [
    "FILE_NAME",
    "RANKS",
    "EventWriter",
    "HostMeter",
    "Meter",
    "Reading",
    "Tail",
    "num_bytes",
    "parse_event",
    "progress",
    "read_events",
    "read_lines",
    "silent",
]
