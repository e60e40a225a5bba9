"""Repeats, and threads that race for a window."""

import threading

import pytest

from headrace.bench.rates import Count, Cycle, Rate, race


def test_a_rate_is_the_median_of_its_repeats():
    rate = Rate((Count(10, 1000, 1.0), Count(30, 3000, 1.0), Count(10, 1000, 0.5)))
    assert (rate.low, rate.samples_per_sec, rate.high) == (10.0, 20.0, 30.0)
    assert rate.bytes_per_sample == 100.0
    assert rate.mb_per_sec == pytest.approx(0.002)
    assert rate.to_json()["repeats"] == [10.0, 30.0, 20.0]


def test_time_without_a_processor_is_taken_out():
    """Two threads that each had a processor for half of the time do half of what they could."""
    assert Rate((Count(100, 0, 1.0, cpu_sec=1.0, starved_sec=1.0, threads=2),)).unstarved == pytest.approx(200.0)
    sleeps = Count(100, 0, 1.0, cpu_sec=0.0, starved_sec=0.0, threads=2)
    assert Rate((sleeps,)).unstarved == pytest.approx(100.0)


def test_every_thread_takes_part_and_ends_with_the_window():
    names = set()
    meet = threading.Barrier(3)

    def turn():
        if threading.get_ident() not in names:
            names.add(threading.get_ident())
            meet.wait(60)
        return 2, 7

    count = race(turn, 3, 0.0)
    assert len(names) == 3
    assert (count.samples, count.bytes, count.threads) == (6, 21, 3)


def test_a_race_ends_where_there_is_no_more():
    left = [(1, 1)] * 5
    assert race(lambda: left.pop() if left else None, 1, 60.0).samples == 5


def test_what_a_turn_raises_comes_out():
    def turn():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        race(turn, 2, 60.0)


def test_a_cycle_goes_round():
    cycle = Cycle(3)
    assert [cycle.next() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
