"""A loader whose batches nobody takes comes to rest: it does not read epoch after epoch of a small dataset."""

from __future__ import annotations

import pytest

import headrace as hr
from headrace.load.marks import Marks
from headrace.load.plan import planned_runs
from headrace.load.reader import EPOCHS_AHEAD, ReadAhead
from headrace.telemetry import Meter
from waiting import wait_for

NUM_SAMPLES = 60


def rests_before(reader, epoch):
    """Whether all threads wait, and the next run to read is of this epoch."""
    with reader._changed:
        first = reader._upcoming.first
        return reader._num_idle == len(reader._threads) and first is not None and first.key[0] == epoch


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_no_more_than_some_epochs_are_read_ahead_however_little_they_take(format, tmp_path):
    """Of a Parquet row group, which is unpacked as a whole, the first run pays for all of every epoch."""
    value = {"x": 1.5} if format == "parquet" else {"cls": 1}
    rows = ({"__key__": f"{i:02d}", **value} for i in range(NUM_SAMPLES))
    hr.pack(rows, tmp_path / "data", format=format, shuffle=False)
    loader = hr.Loader(hr.Stream(hr.open(tmp_path / "data"), epochs=None), global_batch_size=20)
    job, meters = loader._job(2), {"read": Meter(), "verify": Meter()}
    reader = ReadAhead(job.dataset, planned_runs(job, 0, 0), 1 << 30, Marks.create(2).lanes[:2], meters)
    try:
        for epoch in range(3):
            first = next(planned_runs(job, epoch, 0))
            assert reader.get(first.key, first.need + 1) is not None
            wait_for(lambda e=epoch: rests_before(reader, e + EPOCHS_AHEAD + 1), "reading to rest")
    finally:
        reader.stop()
