"""The spool: records come back in the final order, from any place on, however small the buffers are."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.packing import spool as module
from headrace.packing.sorting import sorted_strings
from headrace.packing.spool import Record, Spool


def read(spool, part, first=0):
    return [
        file.record(offset, length)
        for file, entries in spool.runs(part, first)
        for _, offset, length, _ in entries.tolist()
    ]


_HASHES = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**58, 2**63, 2**64 - 1]))


@given(st.lists(st.tuples(_HASHES, st.binary(max_size=90), st.integers(0, 1)), max_size=150), st.booleans(), st.data())
def test_records_come_in_order(tmp_path_factory, records, scatter, data):
    with pytest.MonkeyPatch.context() as patch:
        # Buffers of a few records, and buckets of so few that they are scattered again and again.
        patch.setattr(module, "_BUFFER_BYTES", 1 << 12)
        patch.setattr(module, "BUCKET_ENTRIES", 4)
        spool = Spool(tmp_path_factory.mktemp("spool"), 2, scatter)
        for number, (order_hash, payload, part) in enumerate(records):
            spool.add(part, order_hash, Record(f"kä{number}", payload, len(payload)))
        spool.seal()
        for part in (0, 1):
            mine = [(h, f"kä{i}", payload) for i, (h, payload, p) in enumerate(records) if p == part]
            expected = [
                (key, payload) for _, key, payload in (sorted(mine, key=lambda one: one[0]) if scatter else mine)
            ]
            assert spool.num_records(part) == len(expected)
            assert read(spool, part) == expected
            first = data.draw(st.integers(0, len(expected) + 1))
            assert read(spool, part, first) == expected[first:]
        spool.close()


def test_sizes_are_kept_and_nothing_has_a_name(tmp_path):
    spool = Spool(tmp_path, 1, scatter=True)
    for i in range(50):
        spool.add(0, i << 57, Record(str(i), bytes(i), 1000 + i))
    spool.seal()
    sizes = [size for _, entries in spool.runs(0, 0) for size in entries["size"].tolist()]
    assert sizes == [1000 + i for i in range(50)]
    assert os.listdir(tmp_path) == []
    spool.close()


@given(st.lists(st.binary(max_size=40), max_size=200))
def test_strings_are_sorted_however_little_memory_there_is(tmp_path_factory, strings):
    assert list(sorted_strings(iter(strings), tmp_path_factory.mktemp("sort"), memory_bytes=500)) == sorted(strings)
