"""Which source comes when in a mixture: each turn of each partition takes the next sample of one source.

The sources are the leaves of a binary tree. At a node whose children have the weights a and b, the first c turns that
reach the node in partition p have gone floor(c x a/(a+b) + phase) times to the first child and else to the second:
so how often each source has come is arithmetic, at any turn, and so is the turn at which a source comes for the n-th
time. The phases of the partitions are spread evenly from 0 to 1, so that the partitions do not all take the same source
in the same turn, and their deviations cancel. Where weights change, what each source is behind by then moves the phases
of the new weights: else the roundings of a schedule with many steps would add up.

Over all P partitions one node's rounding is at most P/2 samples off, and what is above a node counts by the share of
it that the node has. So a source is never more than P/2 x (1 + sum of w / w_k over the nodes k between it and the
root) samples from its weight w, at any prefix; the tree is chosen to keep that low, and it is at most P for up to four
sources. For more of them it is what would be if all roundings fell to one side, which takes few partitions.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np

from headrace.order.keyed import I64, U64

SCALE_BITS = 42
"""Shares are multiples of 2^-42: a prefix of 10^12 samples is off by less than one sample for it."""
_LOW_BITS = 64 - SCALE_BITS
_HALF_BITS = SCALE_BITS // 2
_SCALE = 1 << SCALE_BITS


class Leaf(NamedTuple):
    """A source."""

    weight: Fraction
    source: int


class Node(NamedTuple):
    """Two subtrees, the lighter one first."""

    weight: Fraction
    light: Leaf | Node
    heavy: Leaf | Node


Tree: TypeAlias = Leaf | Node


@dataclass(frozen=True)
class Mixing:
    """How sources of these weights alternate. Turns count the samples of one partition, from 0."""

    weights: tuple[Fraction, ...]
    """Positive, in any unit."""
    partitions: int
    behind: I64 | None = None
    """What each source is behind in each partition where these weights begin, in samples x 2^42; None: nothing."""

    @property
    def bound_samples(self) -> Fraction:
        """No source is ever further than so many samples from its weight, over all partitions."""
        return self.partitions * _worst(self._tree) / 2

    def choose(self, partition: I64, turn: I64) -> tuple[I64, I64]:
        """The source at each turn, and how often it has come before in that partition."""
        node, count = np.zeros(len(turn), np.int64), turn.astype(np.int64)
        table = self._table
        active = np.flatnonzero(table.source[node] < 0)
        while len(active):
            here = node[active]
            before = self._light(here, partition[active], count[active])
            is_light = self._light(here, partition[active], count[active] + 1) > before
            count[active] = np.where(is_light, before, count[active] - before)
            node[active] = np.where(is_light, table.light[here], table.heavy[here])
            active = active[table.source[node[active]] < 0]
        source: I64 = table.source[node]
        return source, count

    def counts(self, partition: I64, turn: I64) -> I64:
        """How often each source has come before these turns, shape (sources, turns)."""
        table, counts = self._table, np.empty((len(self.weights), len(turn)), np.int64)
        waiting = [(0, turn.astype(np.int64))]
        while waiting:
            node, count = waiting.pop()
            if table.source[node] >= 0:
                counts[table.source[node]] = count
                continue
            light = self._light(np.full(len(turn), node), partition, count)
            waiting += [(int(table.light[node]), light), (int(table.heavy[node]), count - light)]
        return counts

    def lag(self, turns: I64, counts: I64) -> I64:
        """What sources are behind that have come so often, shape (sources, turns), in samples x 2^42."""
        total = sum(self.weights)
        shares = np.array([round(weight / total * _SCALE) for weight in self.weights])
        return shares[:, None] * turns - (counts << SCALE_BITS)  # products wrap; what is left of them is small

    def turn_of(self, source: I64, partition: I64, count: I64) -> I64:
        """The turn at which each source comes in that partition after it has come `count` times."""
        table = self._table
        node, count = table.leaf[source], count.astype(np.int64)
        active = np.flatnonzero(node != 0)
        while len(active):
            here = node[active]
            parent = table.parent[here]
            count[active] = self._climb(parent, table.light[parent] == here, partition[active], count[active])
            node[active] = parent
            active = active[parent != 0]
        return count

    def _climb(self, node: I64, is_light: np.ndarray, partition: I64, count: I64) -> I64:
        """The count at a node at which the light (or heavy) child comes after it has come `count` times."""
        share = self._table.share[node] / _SCALE
        phase = self._phases(node, partition) / _SCALE
        guess = np.where(is_light, (count + 1 - phase) / share, (count + phase) / (1 - share))
        at = np.maximum(0, guess.astype(np.int64) - 2)
        while True:  # a float is off by a few at most: the smallest count after which the child has come once more
            light = self._light(node, partition, at + 1)
            is_short = np.where(is_light, light, at + 1 - light) <= count
            if not is_short.any():
                return self._step_back(node, is_light, partition, count, at)
            at = at + is_short

    def _step_back(self, node: I64, is_light: np.ndarray, partition: I64, count: I64, at: I64) -> I64:
        while True:
            light = self._light(node, partition, at)
            is_far = np.where(is_light, light, at - light) > count
            if not is_far.any():
                return at
            at = at - is_far

    def _light(self, node: I64, partition: I64, count: I64) -> I64:
        """How often the light child has come in the first `count` turns of a node: exact in 64 bits."""
        share, phase = self._table.share[node].astype(np.uint64), self._phases(node, partition)
        high, low = np.divmod(count.astype(np.uint64), np.uint64(1 << _LOW_BITS))
        whole, rest = np.divmod(share * high, np.uint64(1 << (SCALE_BITS - _LOW_BITS)))
        part = (rest << np.uint64(_LOW_BITS)) + share * low + phase
        light: I64 = (whole + (part >> np.uint64(SCALE_BITS))).astype(np.int64)
        return light

    def _phases(self, node: I64, partition: I64) -> U64:
        return self._even(node, partition) if self.behind is None else self._moved[node, partition]

    def _even(self, node: I64, partition: I64) -> U64:
        """The P phases of a node are the middles of P equal parts of 0 to 1, one a partition."""
        part = (self._table.step[node] * (partition + 1)) % self.partitions
        phases: U64 = (2 * part + 1).astype(np.uint64) * np.uint64(_SCALE) // np.uint64(2 * self.partitions)
        return phases

    @cached_property
    def _moved(self) -> U64:
        """The phases of all nodes and partitions, further by what the light child is behind, as far as phases go."""
        assert self.behind is not None
        table, size = self._table, len(self._table.source)
        behind = np.zeros((size, self.partitions), np.int64)
        behind[table.leaf] = self.behind
        for node in range(size - 1, 0, -1):  # children have higher numbers
            behind[table.parent[node]] += behind[node]
        inner = np.flatnonzero(table.source < 0)
        share = table.share[inner, None] >> _HALF_BITS
        ahead = behind[table.light[inner]] - share * (behind[inner] >> _HALF_BITS)
        even = self._even(inner[:, None], np.arange(self.partitions)[None, :])
        phases = np.zeros((size, self.partitions), np.uint64)
        phases[inner] = np.clip(even.astype(np.int64) + ahead, 0, _SCALE - 1)
        return phases

    @cached_property
    def _tree(self) -> Tree:
        leaves = [Leaf(weight, source) for source, weight in enumerate(self.weights)]
        return min((_by_weight(leaves), _by_number(leaves)), key=_worst)

    @cached_property
    def _table(self) -> _Table:
        return _table_of(self._tree, len(self.weights), self.partitions)


class _Table(NamedTuple):
    """A tree as arrays, its nodes by number; 0 is the root."""

    light: I64
    heavy: I64
    parent: I64
    source: I64
    """Of leaves; -1 for other nodes."""
    leaf: I64
    """The node of each source."""
    share: I64
    """The light child's share of a node, in units of 2^-42, at least one."""
    step: I64
    """How many parts further a partition's phase lies than that of the partition before."""


def _by_weight(leaves: Sequence[Leaf]) -> Tree:
    """Huffman's tree: heavy sources high up, where less is rounded."""
    waiting: list[tuple[Fraction, int, Tree]] = [(leaf.weight, k, leaf) for k, leaf in enumerate(leaves)]
    heapq.heapify(waiting)
    for number in range(len(leaves), 2 * len(leaves) - 1):
        light, heavy = heapq.heappop(waiting), heapq.heappop(waiting)
        weight = light[0] + heavy[0]
        heapq.heappush(waiting, (weight, number, Node(weight, light[2], heavy[2])))
    return waiting[0][2]


def _by_number(leaves: Sequence[Leaf]) -> Tree:
    """The lowest tree: as many sources on one side as on the other, lightest beside heaviest."""
    if len(leaves) == 1:
        return leaves[0]
    ordered = sorted(leaves)
    halves = [_by_number(ordered[k::2]) for k in (0, 1)]
    light, heavy = sorted(halves, key=lambda half: half.weight)
    return Node(light.weight + heavy.weight, light, heavy)


def _worst(tree: Tree) -> Fraction:
    """The factor of P/2 in the bound above, for the source for which it is largest; a single source is never off."""
    return Fraction(0) if isinstance(tree, Leaf) else max(_deepest(child, Fraction(0)) for child in tree[1:])


def _deepest(tree: Tree, above: Fraction) -> Fraction:
    """`above` is the sum of 1 / w_k over the nodes above, but for the root."""
    if isinstance(tree, Leaf):
        return 1 + tree.weight * above
    return max(_deepest(child, above + 1 / tree.weight) for child in tree[1:])


def _table_of(tree: Tree, num_sources: int, partitions: int) -> _Table:
    size = 2 * num_sources - 1
    columns = [np.full(size, -1, np.int64) for _ in range(4)]
    light, heavy, parent, source = columns
    leaf, share = np.zeros(num_sources, np.int64), np.zeros(size, np.int64)
    waiting, used = [(tree, 0)], 1
    while waiting:
        node, number = waiting.pop()
        if isinstance(node, Leaf):
            source[number], leaf[node.source] = node.source, number
            continue
        share[number] = max(1, round(node.light.weight / node.weight * _SCALE))
        light[number], heavy[number] = used, used + 1
        parent[used : used + 2] = number
        waiting += [(node.light, used), (node.heavy, used + 1)]
        used += 2
    return _Table(light, heavy, parent, source, leaf, share, _steps(size, partitions))


def _steps(num: int, partitions: int) -> I64:
    """Near the fractions of the square roots of the first primes, as multiples of 1 / P; with P they have no divisor.

    So neighbouring partitions' phases lie far apart, and those of one node say nothing of another's.
    """
    return np.array([_coprime(math.isqrt(prime * partitions**2) % partitions, partitions) for prime in _primes(num)])


def _coprime(step: int, partitions: int) -> int:
    while math.gcd(step, partitions) != 1:
        step += 1
    return step % partitions


def _primes(num: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < num:
        if all(number % prime for prime in found if prime * prime <= number):
            found.append(number)
        number += 1
    return found
