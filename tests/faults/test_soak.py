"""A soak: store, cache, loader processes, disk and consumer fail at random, and every batch is right.

`SOAK_BATCHES` says how many batches (200,000 are a soak; without it a few thousand show that it works), `SOAK_SEED`
which faults; `EXPLORE=1` takes a new seed. Failures say the seed. What the faults meet still depends on timing.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soak_data
from soak_store import KINDS, Weather
from soak_trainer import HANG_SEC, STORMY

from faulty import FaultyServer
from headrace.storage.cache import CacheOptions, open_cache
from headrace.storage.cache.block import BLOCK_BYTES, rounded, stored_bytes
from waiting import family, running, wait_for, wait_own_gone

SOAK = 200_000
BATCHES = int(os.environ.get("SOAK_BATCHES", 4_000))
BATCHES_A_FAULT, FEWEST_FAULTS = 750, 40
STORE_SHARE = 0.1
CACHE_BYTES = 4 * stored_bytes(BLOCK_BYTES)
"""Of seven blocks with the indexes: so blocks are evicted and fetched again in every epoch."""
STORE_TIMEOUT_SEC = 20
TOLERANCE, SLACK_KIB = 1.05, 4 << 10
"""What memory may grow by from an earlier quarter to the last: five in a hundred, and 4 MiB."""
TRAINER_FROM, LOADER_FROM = 1, 2
"""Which quarter the last one is compared with. The heap of a loader process that reads a store grows for some 80,000
batches: 92 MB at first, 113 after 20,000, 134 after 80,000 and after 200,000."""
MORE_FILES = 2


def seed():
    drawn = random.randrange(1 << 32) if os.environ.get("EXPLORE") else 0
    return int(os.environ.get("SOAK_SEED", drawn))


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_batch_is_right_and_nothing_is_left_whatever_fails(tmp_path, capsys):
    (tmp_path / "temporary").mkdir()
    soak_data.pack(tmp_path / "data")
    processes, shared = family(os.getpid()), set(os.listdir("/dev/shm"))
    found = soak(tmp_path, seed())
    calm = [one for one in found["gauges"] if one["calm"]]
    grown = {"trainer": growth(found["gauges"], "trainer", TRAINER_FROM)}
    grown |= {name: growth(calm, name, LOADER_FROM) for name in ("loader", "files")}
    with capsys.disabled():
        print(
            f"\n{found['summary']}\nan earlier and the last quarter, KiB and open files of the loader process: {grown}"
        )
    assert found["delivered"] >= BATCHES
    assert set(found["counts"]) == set(STORMY)
    assert {"loader killed by SIGKILL", f"loader hung for {HANG_SEC:g} s"} <= {*found["restarts"]}
    assert is_flat(*grown["trainer"])
    if BATCHES >= SOAK:  # in fewer a loader process has not had each of its buffers
        assert set(found["store"]) == set(KINDS)
        assert is_flat(*grown["loader"])
        assert grown["files"][1] <= grown["files"][0] + MORE_FILES
    wait_own_gone(processes)
    wait_for(lambda: set(os.listdir("/dev/shm")) <= shared, "nothing more in /dev/shm")
    assert list((tmp_path / "temporary").iterdir()) == []
    check_cache(tmp_path / "cache")


def soak(folder, seed):
    """What the trainer says in the end, with what the store did, and a summary."""
    files = {f"/data/{path.name}": path.read_bytes() for path in (folder / "data").iterdir()}
    with FaultyServer(files) as server:
        server.always = weather = Weather(seed, STORE_SHARE)
        plan = {
            "url": f"{server.url}/data",
            "folder": str(folder / "data"),
            "cache": str(folder / "cache"),
            "cache_bytes": CACHE_BYTES,
            "batches": BATCHES,
            "faults": max(FEWEST_FAULTS, BATCHES // BATCHES_A_FAULT),
            "seed": seed,
        }
        began = time.monotonic()
        found = json.loads(run_trainer(plan, folder / "temporary"))
        seconds = time.monotonic() - began
    store = {kind: count for kind, count in weather.counts.items() if kind}
    lines = [
        f"SOAK_SEED={seed}: {found['delivered']:,} batches ({found['at']:,} global ones) in {seconds:.0f} s",
        f"by ranks: {found['worlds']}; local faults: {found['counts']}; restarts: {found['restarts']}",
        f"store: {store} of {len(server.requests):,} requests; before and after: {found['possessions']}",
    ]
    return found | {"store": store, "summary": "\n".join(lines)}


def run_trainer(plan, temporary):
    """The last line that the trainer printed. Fails with the seed and what it said of its end."""
    roots = (Path(__file__).parent, Path(__file__).parents[1], *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "HEADRACE_STORAGE_TIMEOUT_SEC": str(STORE_TIMEOUT_SEC),
        "TMPDIR": str(temporary),
        # Each thread's own heap grows to its bound for a hundred thousand batches, which would hide a small leak.
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, Path(__file__).with_name("soak_trainer.py"), json.dumps(plan)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(command, env=os.environ | environment, **pipes) as trainer:
        said, errors = trainer.communicate()
    assert trainer.returncode == 0, f"SOAK_SEED={plan['seed']}: the trainer failed\n{errors[-6000:]}"
    return said.splitlines()[-1]


def growth(gauges, name, number):
    """The medians of a quarter, counted from 0, and of the last."""
    values = [one[name] for one in gauges if name in one]
    quarter = len(values) // 4
    return statistics.median(values[number * quarter : (number + 1) * quarter]), statistics.median(values[-quarter:])


def is_flat(earlier_kib, last_kib):
    return last_kib <= earlier_kib * TOLERANCE + SLACK_KIB


def check_cache(folder):
    """Nothing but blocks within the quota, once somebody has opened it anew."""
    cache = open_cache(CacheOptions(str(folder), CACHE_BYTES))
    (own,) = folder.iterdir()
    paths = [path for path in own.rglob("*") if path.is_file()]
    blocks = [path for path in paths if path.parent.parent.name == "blocks"]
    assert {str(path.relative_to(own)) for path in {*paths} - {*blocks}} == {"CACHEDIR.TAG", "state"}
    assert sum(rounded(path.stat().st_size) for path in blocks) <= CACHE_BYTES + stored_bytes(BLOCK_BYTES)
    del cache
