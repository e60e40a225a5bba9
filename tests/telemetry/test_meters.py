"""Meters: sums that stay right when several threads add to them."""

from concurrent.futures import ThreadPoolExecutor

from headrace.telemetry import Meter, Reading


def test_sums_add_up():
    meter = Meter()
    meter.add(items=2, num_bytes=10, busy_sec=0.5)
    meter.add(items=1, wait_sec=0.25)
    assert meter.read() == Reading(3, 10, 0.5, 0.25)


def test_threads_lose_no_count():
    meter = Meter()

    def work(_):
        for _ in range(2000):
            meter.add(items=1, num_bytes=3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert meter.read() == Reading(8000, 24_000)
