"""Documents put together as samples: planned once, kept beside the dataset, verified and streamed like any sample."""

import itertools
import json
import os
import shutil

import numpy as np
import pytest

import headrace as hr
from headrace.errors import DamagedError, OptionError

RNG = np.random.default_rng(3)
LENGTHS = np.maximum(1, RNG.lognormal(3.2, 1, 400)).astype(int)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Documents of which every token tells its document and place."""
    folder = tmp_path_factory.mktemp("tokens") / "d"
    hr.pack(
        ({"tokens": np.arange(length) + 1000 * i} for i, length in enumerate(LENGTHS.tolist())),
        folder,
        format="tokens",
        shard_size=30_000,
        shuffle=False,
    )
    return folder


def pieces_of(sample):
    """(document, first token, length) of each document of a row."""
    bounds = sample["cu_seqlens"].tolist()
    for first, last in itertools.pairwise(bounds):
        tokens = sample["tokens"][first:last].astype(int)
        assert (np.diff(tokens) == 1).all()
        assert (sample["positions"][first:last] == np.arange(last - first)).all()
        assert len(set(sample["segments"][first:last].tolist())) == 1
        yield int(tokens[0]) // 1000, int(tokens[0]) % 1000, last - first


def test_rows_hold_every_token_once_with_boundaries(packed):
    rows = hr.open(packed).binned("rows", 64)
    came = dict.fromkeys(range(len(LENGTHS)), 0)
    for k in range(len(rows)):
        row = rows[k]
        used = row["cu_seqlens"][-1]
        assert row["tokens"].shape == row["positions"].shape == row["segments"].shape == (64,)
        assert not row["segments"][used:].any()
        assert not row["tokens"][used:].any()
        for document, _, length in pieces_of(row):
            came[document] += length
    assert came == dict(enumerate(LENGTHS.tolist()))
    assert LENGTHS.sum() / (len(rows) * 64) > 0.98


def test_a_row_is_found_by_its_key_and_a_document_is_no_row(packed):
    """The index of keys beside the manifest is of documents."""
    rows = hr.open(packed).binned("rows", np.int64(2048))
    last = rows[len(rows) - 1]
    np.testing.assert_array_equal(rows.lookup(last["__key__"])["tokens"], last["tokens"])
    documents = hr.open(packed)
    for k in (0, len(documents) - 1):
        with pytest.raises(KeyError, match="no sample has the key"):
            rows.lookup(documents[k]["__key__"])


def test_padded_batches_hold_every_document_once(packed):
    batches = hr.open(packed).binned("padded", 1000)
    came = []
    for k in range(len(batches)):
        batch = batches[k]
        assert batch["tokens"].size <= 1000
        for row, length in zip(batch["tokens"], batch["lengths"].tolist(), strict=True):
            assert not row[length:].any()
            came.append(int(row[0]) // 1000)
    assert sorted(came) == list(range(len(LENGTHS)))


def test_a_plan_is_made_once_and_found_again(packed, tmp_path, monkeypatch):
    shutil.copytree(packed, tmp_path / "d")
    first = hr.open(tmp_path / "d").binned("rows", 50)
    before = {name: os.stat(tmp_path / "d" / name).st_mtime_ns for name in os.listdir(tmp_path / "d")}
    monkeypatch.setattr("headrace.dataset.binning._planned", None)
    again = hr.open(tmp_path / "d").binned("rows", 50)
    assert again == first
    assert [s["tokens"].tolist() for s in again[:5]] == [s["tokens"].tolist() for s in first[:5]]
    assert before == {name: os.stat(tmp_path / "d" / name).st_mtime_ns for name in os.listdir(tmp_path / "d")}
    assert hr.open(tmp_path / "d").verify() == []


def test_where_no_file_may_be_written_the_plan_is_kept_in_memory(packed, tmp_path):
    """An ordinary dataset gets no files that nobody asked for."""
    (tmp_path / "d").mkdir()
    for shard in packed.glob("*.bin"):
        shutil.copy(shard, tmp_path / "d" / f"{shard.stem}.uint32.bin")
    rows = hr.open(tmp_path / "d").binned("rows", 64)
    assert len(rows) > 0
    assert sorted(os.listdir(tmp_path / "d")) == sorted(f"{s.stem}.uint32.bin" for s in packed.glob("*.bin"))
    with hr.Loader(hr.Stream(rows), batch_size=8) as loader:
        assert next(iter(loader))["tokens"].shape == (8, 64)


def test_a_plan_of_other_data_is_made_anew(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "d")
    hr.open(tmp_path / "d").binned("rows", 64)
    hr.pack([{"tokens": np.arange(30)}], tmp_path / "d", format="tokens", overwrite=True)
    rows = hr.open(tmp_path / "d").binned("rows", 64)
    assert len(rows) == 1
    assert rows[0]["cu_seqlens"].tolist() == [0, 30]


def test_a_damaged_plan_is_noticed(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "d")
    hr.open(tmp_path / "d").binned("rows", 64)
    plan = tmp_path / "d" / "shard-000000.bin.rows-64.idx"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(DamagedError, match="rows-64"):
        hr.open(tmp_path / "d").binned("rows", 64)[0]


def test_damaged_tokens_are_never_silent(packed, tmp_path):
    """Exactly the rows that lie in the damaged block are named."""
    shutil.copytree(packed, tmp_path / "d")
    rows = hr.open(tmp_path / "d").binned("rows", 64)
    whole = [rows[k]["tokens"].tolist() for k in range(len(rows))]
    shard = tmp_path / "d" / "shard-000001.bin"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    damaged = 0
    for k in range(len(rows)):
        try:
            found = rows[k]["tokens"].tolist()
        except DamagedError as err:
            found, damaged = whole[k] if "the checksum of bytes 4,096 to 8,192" in str(err) else None, damaged + 1
        assert found == whole[k]
    assert 0 < damaged < len(rows) // 2


def test_rows_are_streamed_once_and_resumed_exactly(packed):
    rows = hr.open(packed).binned("rows", 64)
    stream = hr.Stream(rows, seed=5, partitions=4)

    def keys(loader):
        return [key for batch in loader for key in batch["__key__"]]

    with hr.Loader(stream, batch_size=4, drop_last=False) as loader:
        straight = keys(loader)
    assert sorted(straight) == sorted(rows[k]["__key__"] for k in range(len(rows)))
    with hr.Loader(stream, batch_size=4, drop_last=False) as loader:
        batches = iter(loader)
        first = [key for _ in range(5) for key in next(batches)["__key__"]]
        state = json.loads(json.dumps(loader.state_dict()))
    with hr.Loader(stream, global_batch_size=4, rank=0, world_size=1, drop_last=False) as loader:
        loader.load_state_dict(state)
        assert first + keys(loader) == straight


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, "64", 1 << 25])
def test_no_length_of_a_row_is_refused(packed, capacity):
    with pytest.raises(OptionError, match=r"into 1 to 16,777,216 tokens: got|must be a whole number: got"):
        hr.open(packed).binned("rows", capacity)


def test_what_has_no_lengths_is_refused_with_a_way_out(tmp_path):
    hr.pack([{"txt": "a"}], tmp_path / "d")
    with pytest.raises(OptionError, match=r"pack it into tokens first \(format=\"tokens\"\)"):
        hr.open(tmp_path / "d").binned("rows", 64)
