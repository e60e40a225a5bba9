"""Reads under way at once: doubled while that pays, on a clock that the test turns."""

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.load.pace import REST_SEC, Pace

STEP_SEC = 0.05


class World:
    """A store that gives each read so much, and all no more than so much; and somebody who waits or does not."""

    def __init__(self, least, most, each=1e6, limit=1e12, wait_share=0.9):
        self.now = 0.0
        self.each, self.limit, self.wait_share = each, limit, wait_share
        self.pace = Pace(least, most, lambda: self.now)

    def rate(self, active):
        return min(active * self.each, self.limit)

    def run(self, sec, num_idle=0):
        seen = []
        for _ in range(round(sec / STEP_SEC)):
            self.now += STEP_SEC
            self.pace.waited(self.wait_share * STEP_SEC)
            self.pace.read(self.rate(self.pace.active) * STEP_SEC, num_idle)
            seen.append(self.pace.active)
        return seen


@settings(max_examples=50)
@given(st.integers(1, 32), st.integers(1, 256), st.floats(0.5, 300))
def test_it_ends_at_nearly_what_the_store_gives_and_with_no_more_reads_than_that_takes(least, most, enough):
    """Within 30 seconds; `enough` reads are all that the store serves."""
    world = World(least, max(least, most), limit=enough * 1e6)
    world.run(30)
    active = world.pace.active
    assert least <= active <= max(least, most)
    assert world.rate(active) * 1.1 >= world.rate(max(least, most))
    assert active == least or active < 2 * enough


def test_nothing_changes_where_nobody_waits_or_reads_lack_work():
    assert set(World(16, 128, wait_share=0.05).run(20)) == {16}
    assert set(World(16, 128).run(20, num_idle=1)) == {16}


def test_what_did_not_pay_is_tried_again_after_a_rest():
    world = World(16, 128, limit=16e6)
    assert 32 in world.run(5)
    assert set(world.run(REST_SEC / 2)) == {16}
    world.limit = 64e6
    world.run(REST_SEC)
    world.run(10)
    assert world.pace.active == 64


def test_a_feed_that_gets_faster_by_itself_proves_nothing():
    """As it does when it begins: twice as many reads are tried, and give no more than half of them afterwards."""
    world = World(16, 128, limit=2e6)
    seen = []
    for _ in range(20):
        seen += world.run(0.5)
        world.limit = min(16e6, 1.2 * world.limit)
    assert 32 in seen
    assert world.pace.active == 16


def test_the_most_is_kept():
    world = World(16, 48)
    world.run(20)
    assert world.pace.active == 48
