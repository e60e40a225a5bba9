"""Keys that are there twice: refused when a dataset is adopted, reported of one that is opened as it lies."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.dataset.repeated import MOST_NAMED
from headrace.errors import DatasetError
from headrace.formats.tfrecord.example import BYTES, INTS, Feature, serialize_example
from headrace.formats.tfrecord.framing import framed


def write(path, keys):
    """A file of samples with these keys, in the format of its name; None: the sample has no key."""
    rows = [{"__key__": key, "n": i} if key is not None else {"n": i} for i, key in enumerate(keys)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        path.write_text("__key__,n\n" + "".join(f"{row.get('__key__', '')},{row['n']}\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        examples = [{name: feature(value) for name, value in row.items()} for row in rows]
        path.write_bytes(b"".join(framed(serialize_example(example)[0]) for example in examples))


def feature(value):
    return Feature(INTS, [value]) if isinstance(value, int) else Feature(BYTES, [value.encode()])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "tfrecord"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["a", "b", "c", "b"], ["d"], "the key b is there twice: as sample 1 of p0.{} and sample 3 of p0.{}"),
        (["a", "b", "c"], ["d", "b"], "the key b is there twice: as sample 1 of p0.{} and sample 1 of p1.{}"),
        (["a", "x", "x"], ["x", "x"], "the key x is there twice: as sample 1 of p0.{} and sample 2 of p0.{}"),
    ],
)
def test_a_key_that_is_there_twice(folder, format, first, second, message):
    message = message.replace("{}", format)
    write(folder / f"p0.{format}", first)
    write(folder / f"p1.{format}", second)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DatasetError, match="own, or pack the dataset without those that come again") as refused:
        hr.index(folder)
    assert str(refused.value).startswith(message + "; give every sample a `__key__` of its own")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "nothing is left"
    ds = hr.open(folder)
    assert ds.verify() == [message]
    key = "x" if "x" in first else "b"
    assert ds.lookup(key)["n"] == 1, "the first one"
    hr.pack(folder, folder.parent / "packed", format="parquet", on_error="skip", shuffle=False)
    packed = hr.open(folder.parent / "packed")
    assert [one["__key__"] for one in packed] == list(dict.fromkeys(first + second)), "the way out works"
    assert packed.verify() == []


def test_a_key_may_be_the_one_that_another_sample_has_by_its_number(folder):
    write(folder / "a.jsonl", ["a:1", None, "x"])
    (error,) = hr.open(folder).verify()
    assert error == "the key a:1 is there twice: as sample 0 of a.jsonl and sample 1 of a.jsonl"


def test_of_many_a_hundred_are_named_in_storage_order(folder):
    keys = [f"{i:04d}" for i in range(MOST_NAMED + 50)]
    write(folder / "a.csv", [f"k{key}" for key in keys * 2])
    errors = hr.open(folder).verify()
    assert len(errors) == MOST_NAMED + 1
    assert errors[:-1] == sorted(errors[:-1])
    assert errors[-1] == "50 more keys are there twice"


@pytest.mark.parametrize(
    "names",
    [
        ["train.2023.jsonl", "train.2024.jsonl"],
        ["train.tfrecord-00000-of-00002", "train.tfrecord-00001-of-00002"],
        ["part.0.snappy.parquet", "part.1.snappy.parquet"],
        ["rows.a.csv", "rows.b.csv"],
    ],
)
def test_keys_made_of_names_differ_from_file_to_file(folder, names):
    """And can be those of a tar, where they end at a dot."""
    for name in names:
        made = folder / ("made" + next(end for end in (".jsonl", ".csv", ".parquet", ".tfrecord") if end in name))
        write(made, [None, None, None])
        made.rename(folder / name)
    assert hr.open(folder).verify() == []
    hr.index(folder)
    ds = hr.open(folder)
    keys = [one["__key__"] for one in ds]
    assert len(set(keys)) == 6
    assert "." not in "".join(keys)
    hr.pack(folder, folder.parent / "tar", shuffle=False)
    assert [one["__key__"] for one in hr.open(folder.parent / "tar")] == keys
