"""The matrix: what happens, where, and what the run comes to. A cell that is not here cannot occur."""

from places import NAMES
from striking import (
    GOES_ON,
    STOPS,
    answering,
    cut_each,
    expired,
    flip_each,
    flip_middle,
    full_cache_disk,
    heal,
    killed_loader,
    lasting,
    lengthen_each,
    passing,
    restore_each,
    stopped_loader,
)
from training import clock_step, full_run_disk, killed_trainer

from faulty import end_after, flip, reset_after, short, stall_after, status

STORES = ("s3", "http", "cache")
DAMAGED = r"^sample '\d{4}' in shard-00000\d\.tar: its checksum is "
CUT = r"shard-00000\d\.tar is cut short: "


def reset(handler):
    handler.reset()


def everywhere(scenario, outcome):
    return dict.fromkeys(NAMES, (scenario, outcome))


def in_stores(scenario, outcome=GOES_ON):
    return dict.fromkeys(STORES, (scenario, outcome))


down = lasting(answering(status(503)), heal, "gave up after .* 503 Service Unav", HEADRACE_STORAGE_TIMEOUT_SEC="3")
damaged = lasting(answering(flip_middle), heal, DAMAGED)
flipped = lasting(flip_each, flip_each, DAMAGED)
cut = lasting(cut_each, restore_each, CUT)

MATRIX = {
    "reset": in_stores(passing(reset, reset, reset)),
    "503": in_stores(passing(status(503), status(503), status(503))),
    "429": in_stores(passing(status(429, Retry_After="1"), status(429), status(429))),
    "stall": in_stores(passing(stall_after(1000))),
    "cut body": {"local": (cut, STOPS), **in_stores(passing(end_after(1000), reset_after(5000), end_after(0)))},
    "corrupt bytes": {"local": (flipped, STOPS), **in_stores(passing(flip, ending=".tar"))},
    "wrong length": {"local": (lengthen_each, GOES_ON), **in_stores(passing(short(1000), short(1000), ending=".tar"))},
    "store down": in_stores(down, STOPS),
    "store damaged": in_stores(damaged, STOPS),
    "expired cache": {"cache": (expired, GOES_ON)},
    "full disk": {**everywhere(full_run_disk, STOPS), "cache": (full_cache_disk, GOES_ON)},
    "killed loader": everywhere(killed_loader, GOES_ON),
    "stopped loader": everywhere(stopped_loader, GOES_ON),
    "killed trainer": everywhere(killed_trainer, STOPS),
    "clock step": everywhere(clock_step, GOES_ON),
}
"""{fault: {place: (scenario, outcome)}}"""

CELLS = [(fault, place) for fault, row in MATRIX.items() for place in NAMES if place in row]
