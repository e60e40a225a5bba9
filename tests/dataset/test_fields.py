"""Some of the fields alone: what samples, the schema, loaders and packed copies then have."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.errors import DamagedError, OptionError

NUM_ROWS, PHOTO_BYTES = 48, 5_000


def row(i):
    return {"__key__": f"k{i:02d}", "id": i, "label": i % 3, "text": f"row {i}"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """An indexed Parquet file of six row groups."""
    folder = tmp_path_factory.mktemp("fields") / "table"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [row(i) for i in range(NUM_ROWS)]
    columns = {name: [one[name] for one in rows] for name in ("__key__", "id", "label")}
    columns |= {"photo": [rng.bytes(PHOTO_BYTES) for _ in rows], "text": [one["text"] for one in rows]}
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=8)
    hr.index(folder)
    return folder


def some(i, *names):
    return {name: row(i)[name] for name in ("__key__", *names)}


def test_samples_and_schema_have_these_fields_in_the_order_of_the_schema(table):
    ds = hr.open(table, fields=["text", "id", "id"])
    assert list(ds.schema) == list(ds[0])[1:] == ["id", "text"]
    assert ds[5] == some(5, "id", "text")
    assert ds[6:18] == [some(i, "id", "text") for i in range(6, 18)]
    assert ds.lookup("k40") == some(40, "id", "text")
    assert pickle.loads(pickle.dumps(ds))[-1] == some(47, "id", "text")
    assert ds.with_fields(["__key__", "id"])[7] == some(7, "id")
    assert hr.open(table, fields=[])[7] == {"__key__": "k07"}
    assert "fields=['id', 'text']" in repr(ds)


def test_a_field_that_is_not_there_is_refused_with_the_nearest(table):
    with pytest.raises(OptionError, match=r"table has no 'lable', the nearest that it has: 'label'$"):
        hr.open(table, fields=["id", "lable"])
    with pytest.raises(OptionError, match=r"has no 'xyz', but 'id', 'label', 'photo', 'text'$"):
        hr.open(table, fields=["xyz"])
    with pytest.raises(OptionError, match="has no 'id', but 'text'"):
        hr.open(table, fields=["text"]).with_fields(["id"])
    for wrong in ("id", b"id", 3, [3]):
        with pytest.raises(OptionError, match="fields must be a list of names of fields, or None for all: got"):
            hr.open(table, fields=wrong)


def test_datasets_of_other_fields_differ_but_are_the_same_data(table):
    ds, other = hr.open(table), hr.open(table, fields=["id"])
    assert ds != other == hr.open(table, fields=["id"]) != hr.open(table, fields=["text"])
    assert hash(other) == hash(hr.open(table, fields=["id"]))
    assert ds.fingerprint == other.fingerprint


def loader_of(table, fields, **options):
    return hr.Loader(hr.Stream(hr.open(table, fields=fields), seed=5, partitions=4), batch_size=6, **options)


def test_the_order_and_a_loaders_state_do_not_depend_on_the_fields(table):
    with loader_of(table, None) as loader:
        every = [batch["__key__"] for batch in loader]
    with loader_of(table, ["label"]) as loader:
        batches = iter(loader)
        first = [next(batches) for _ in range(3)]
        state = loader.state_dict()
    assert [set(batch) for batch in first] == [{"__key__", "label"}] * 3
    with loader_of(table, ["text", "id"]) as loader:
        loader.load_state_dict(state)
        rest = list(loader)
    assert [set(batch) for batch in rest] == [{"__key__", "text", "id"}] * (len(every) - 3)
    assert [batch["__key__"] for batch in first + rest] == every
    for batch in rest:
        assert batch["text"] == [f"row {i}" for i in batch["id"].tolist()]


def test_keys_alone_are_streamed_too(table):
    with loader_of(table, []) as loader:
        batches = list(loader)
    assert [set(batch) for batch in batches] == [{"__key__"}] * 8
    assert sorted(key for batch in batches for key in batch["__key__"]) == [row(i)["__key__"] for i in range(NUM_ROWS)]


def test_damage_in_other_columns_is_not_met_but_verification_names_it(table, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in table.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    data = bytearray((copy / "rows.parquet").read_bytes())
    data[PHOTO_BYTES] ^= 1  # in the photos of the first row group
    (copy / "rows.parquet").write_bytes(data)
    ds = hr.open(copy, fields=["text"])
    assert ds[:] == [some(i, "text") for i in range(NUM_ROWS)]
    with pytest.raises(DamagedError, match="the checksum of column 'photo' in row group 0"):
        hr.open(copy)[0]
    assert ds.verify() == hr.open(copy).verify() != []


def test_of_a_tar_samples_are_read_whole_and_the_rest_is_left_out(tmp_path):
    samples = [{"__key__": f"{i:02d}", "txt": f"text {i}", "bin": bytes([i]) * 90, "cls": i % 2} for i in range(20)]
    hr.pack(samples, tmp_path / "tar", shuffle=False)
    ds = hr.open(tmp_path / "tar", fields=["txt", "cls"])
    assert [set(sample) for sample in ds] == [{"__key__", "txt", "cls"}] * 20
    with hr.Loader(hr.Stream(ds, shuffle=False).decode(), batch_size=20) as loader:
        [batch] = loader
    assert set(batch) == {"__key__", "txt", "cls"}
    assert batch["txt"] == [f"text {i}" for i in range(20)]


def test_windows_of_tokens_may_do_without_them(tmp_path):
    hr.pack([{"tokens": np.arange(100, dtype=np.uint16)}], tmp_path / "tokens", format="tokens")
    ds = hr.open(tmp_path / "tokens", fields=["tokens"]).windows(10)
    assert ds[3]["tokens"].tolist() == list(range(30, 40))
    keys = ds.with_fields([])
    assert (keys.schema, keys[3]) == ({}, {"__key__": ds[3]["__key__"]})
    assert keys.lookup(ds[3]["__key__"]) == keys[3]


def test_a_pack_has_the_fields_of_its_source_and_other_fields_are_another_pack(table, tmp_path):
    for name, format in (("a", "parquet"), ("b", "tar")):
        manifest = hr.pack(hr.open(table, fields=["id", "text"]), tmp_path / name, format=format)
        assert set(manifest.fields) == {"id", "text"}
        assert manifest == hr.pack(hr.open(table, fields=["text", "id"]), tmp_path / name, format=format)
        with pytest.raises(hr.errors.TargetError, match="overwrite"):
            hr.pack(hr.open(table, fields=["id"]), tmp_path / name, format=format)
    assert hr.open(tmp_path / "a").lookup("k07") == some(7, "id", "text")
    with pytest.raises(hr.errors.HeadraceError, match="photo"):
        hr.pack(hr.open(table, fields=["id"]), tmp_path / "c", where="len(photo) > 3")
