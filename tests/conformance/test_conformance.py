"""What holds for every format alike: the same samples come out, in the same ways, and damage is never silent."""

import pickle
import shutil
from contextlib import suppress

import pytest
from conformance_makers import KINDS, SAMPLES, expected, make_ordinary, plain_sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import DatasetError, HeadraceError, OptionError
from headrace.formats import FORMATS

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each kind an ordinary dataset and an indexed copy, made once; tests that change files copy them."""
    root, done = tmp_path_factory.mktemp("formats"), {}

    def get(kind):
        if kind not in done:
            make_ordinary(kind, root / kind)
            shutil.copytree(root / kind, root / f"{kind}-indexed")
            hr.index(root / f"{kind}-indexed")
            done[kind] = root / kind, root / f"{kind}-indexed"
        return done[kind]

    return get


def read_back(kind):
    return [expected(kind, one) for one in SAMPLES]


def shards_of(folder):
    return [folder / name for name in hr.open(folder).manifest.shards.file]


def test_an_ordinary_dataset_opens_and_gives_its_samples(made, kind):
    ds = hr.open(made(kind)[0])
    assert ds.manifest.format == kind.partition(".")[0]
    assert len(ds.manifest.shards) >= 3
    assert [plain_sample(one) for one in ds] == read_back(kind)


def test_an_indexed_one_gives_the_same_and_is_whole(made, kind):
    ordinary, indexed = made(kind)
    ds = hr.open(indexed)
    assert ds.fingerprint == hr.open(ordinary).fingerprint
    assert ds.schema == hr.open(ordinary).schema
    assert [plain_sample(one) for one in ds] == read_back(kind)
    assert ds.verify() == []
    for path in shards_of(indexed):
        assert path.read_bytes() == (ordinary / path.relative_to(indexed)).read_bytes()


def test_random_access_agrees(made, kind):
    ds, every = hr.open(made(kind)[1]), read_back(kind)
    for i in (0, 7, 59, -1, -60):
        assert plain_sample(ds[i]) == every[i]
    for cut in (slice(15, 45), slice(58, 99), slice(30, 10, -4)):
        assert [plain_sample(one) for one in ds[cut]] == every[cut]
    for i in (0, 21, 59):
        assert plain_sample(ds.lookup(every[i]["__key__"])) == every[i]
    with pytest.raises(KeyError, match="no sample has the key"):
        ds.lookup("nothing like this")
    assert [plain_sample(one) for one in pickle.loads(pickle.dumps(ds))[5:8]] == every[5:8]


def rows_of(batch):
    names = [name for name in batch if name != "__key__"]
    for number, key in enumerate(batch["__key__"]):
        row = {name: batch[name][number] for name in names}
        yield {"__key__": key, **{name: v.item() if hasattr(v, "item") else v for name, v in row.items()}}


@pytest.mark.parametrize("shuffle", [False, True])
def test_it_streams_every_sample_once(made, kind, shuffle):
    stream = hr.Stream(hr.open(made(kind)[1]), shuffle=shuffle, partitions=4)
    with hr.Loader(stream, batch_size=9, drop_last=False, rank=0, world_size=1) as loader:
        rows = [plain_sample(row) for batch in loader for row in rows_of(batch) if row.pop("__real__", True)]
    every = read_back(kind)
    if shuffle:
        assert [row["__key__"] for row in rows] != [one["__key__"] for one in every]
        rows.sort(key=lambda row: row["__key__"])
    assert rows == every


NAMES = st.lists(st.sampled_from(["label", "text", "data"]), max_size=4)


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(names=NAMES, i=st.integers(0, 59), count=st.integers(0, 40))
def test_some_fields_are_what_all_have_without_the_others(made, kind, names, i, count):
    """Of an ordinary and an indexed dataset, one by one, in slices, by key; and the dataset is the same one."""
    every = [{name: value for name, value in one.items() if name in ("__key__", *names)} for one in read_back(kind)]
    for folder in made(kind):
        ds, whole = hr.open(folder, fields=names), hr.open(folder)
        assert ds.schema == {name: field for name, field in whole.schema.items() if name in names}
        assert (ds.fingerprint, ds.manifest) == (whole.fingerprint, whole.manifest)
        assert plain_sample(ds[i]) == every[i]
        assert [plain_sample(one) for one in ds[i : i + count]] == every[i : i + count]
        assert plain_sample(ds.lookup(every[i]["__key__"])) == every[i]
        with pytest.raises(OptionError, match="has no 'txet', the nearest that it has: 'text'"):
            hr.open(folder, fields=[*names, "txet"])


def test_some_fields_stream_in_the_order_of_all(made, kind):
    ds, every = hr.open(made(kind)[1]), {one["__key__"]: one for one in read_back(kind)}
    keys, rows = [], []
    for fields in (None, ["text", "label"]):
        stream = hr.Stream(ds if fields is None else ds.with_fields(fields), seed=2, partitions=4)
        with hr.Loader(stream, batch_size=10, rank=0, world_size=1) as loader:
            rows = [plain_sample(row) for batch in loader for row in rows_of(batch)]
        keys.append([row["__key__"] for row in rows])
    assert keys[0] == keys[1]
    assert rows == [{name: every[key][name] for name in ("__key__", "label", "text")} for key in keys[1]]


def test_verification_finds_damage_in_whatever_fields_were_not_asked_for(made, tmp_path, kind):
    folder = tmp_path / "copy"
    shutil.copytree(made(kind)[1], folder)
    for change in (junk, swapped):
        change(shards_of(folder))
        assert hr.open(folder, fields=["label"]).verify() == hr.open(folder).verify() != []


def check_never_silent(kind, folder, is_changed):
    """Every sample is right, or an error; and verification says that something is wrong."""
    every = read_back(kind)
    try:
        ds = hr.open(folder)
    except DatasetError:
        return
    for i, right in enumerate(every):
        with suppress(HeadraceError):
            assert plain_sample(ds[i]) == right
    errors = ds.verify()
    assert bool(errors) == is_changed
    assert all("\n" not in error for error in errors)


damage = settings(max_examples=12, suppress_health_check=list(HealthCheck))


@damage
@given(at=st.integers(0, 2**40), change=st.integers(1, 255), which=st.integers(0, 99))
def test_a_flipped_byte_anywhere_is_never_silent(made, tmp_path_factory, kind, at, change, which):
    folder = tmp_path_factory.mktemp("flip") / "copy"
    shutil.copytree(made(kind)[1], folder)
    paths = shards_of(folder)
    path = paths[which % len(paths)]
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= change
    path.write_bytes(data)
    check_never_silent(kind, folder, True)


@damage
@given(length=st.integers(0, 2**40), which=st.integers(0, 99))
def test_a_shard_cut_anywhere_is_never_silent(made, tmp_path_factory, kind, length, which):
    folder = tmp_path_factory.mktemp("cut") / "copy"
    shutil.copytree(made(kind)[1], folder)
    paths = shards_of(folder)
    path = paths[which % len(paths)]
    path.write_bytes(path.read_bytes()[: length % path.stat().st_size])
    check_never_silent(kind, folder, True)


def test_shards_that_are_missing_swapped_or_followed_by_junk_are_never_silent(made, tmp_path, kind):
    for number, change in enumerate((missing, swapped, junk)):
        folder = tmp_path / str(number)
        shutil.copytree(made(kind)[1], folder)
        change(shards_of(folder))
        check_never_silent(kind, folder, True)


def test_a_key_is_there_once_but_for_tars_of_others(made, tmp_path, kind):
    """The first shard again, as the last: adopting it is refused, verification says it, the first sample is found."""
    folder = tmp_path / "copy"
    shutil.copytree(made(kind)[0], folder)
    (folder / "index.json").unlink(missing_ok=True)  # in which MDS lists its shards
    first = shards_of(folder)[0]
    shutil.copyfile(first, folder / f"zz-{first.name}")
    ds, num_twice = hr.open(folder), int(hr.open(folder).manifest.shards.samples[0])
    assert len(ds) == len(SAMPLES) + num_twice
    errors = ds.verify()
    if kind.startswith("tar"):
        assert errors == []
        hr.index(folder)
        ds = hr.open(folder)
    else:
        assert len(errors) == num_twice
        assert f"the key d/k000 is there twice: as sample 0 of {first.name} and sample 0 of zz-{first.name}" in errors
        with pytest.raises(DatasetError, match=r"the key d/k\d+ is there twice: as sample .*; give every sample"):
            hr.index(folder)
        assert not (folder / "headrace.keys").exists()
    assert plain_sample(ds.lookup("d/k000")) == read_back(kind)[0]


def missing(paths):
    paths[1].unlink()


def swapped(paths):
    first, second = (path.read_bytes() for path in paths[:2])
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)


def junk(paths):
    with open(paths[0], "ab") as file:
        file.write(b"junk behind the end\n" * 30)


@damage
@given(at=st.integers(0, 2**40), change=st.integers(1, 255))
def test_a_flipped_byte_without_an_index_is_an_error_or_read_as_it_lies(made, tmp_path_factory, kind, at, change):
    """Without checksums a format notices what it can; what it cannot must at least not break anything."""
    folder = tmp_path_factory.mktemp("bare") / "copy"
    shutil.copytree(made(kind)[0], folder)
    path = shards_of(folder)[0]
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= change
    path.write_bytes(data)
    with suppress(HeadraceError):
        assert all(isinstance(one["__key__"], str) for one in hr.open(folder))


def test_damaged_samples_are_skipped_and_counted_and_the_rest_comes(made, tmp_path, kind):
    folder = tmp_path / "copy"
    shutil.copytree(made(kind)[1], folder)
    path = shards_of(folder)[1]
    whole = hr.open(folder)
    piece = next(whole.piece(k) for k in range(len(whole.pieces)) if whole.pieces.place(k)[0] == 1)
    offset, length = piece.extent(0, piece.num_samples)
    data = bytearray(path.read_bytes())
    data[offset + length // 2] ^= 1
    path.write_bytes(data)
    ds, every = hr.open(folder), {one["__key__"]: one for one in read_back(kind)}
    lost = 0
    for i in range(len(ds)):
        try:
            ds[i]
        except DatasetError:
            lost += 1
    stream = hr.Stream(ds, partitions=4)
    with hr.Loader(stream, batch_size=10, on_error="skip", drop_last=False, rank=0, world_size=1) as loader:
        rows = [plain_sample(row) for batch in loader for row in rows_of(batch) if row.pop("__real__", True)]
        skipped = loader.meters()["skipped"]
    assert all(row == every[row["__key__"]] for row in rows)
    assert (len(rows), skipped) == (len(every) - lost, lost)
    # What is hit in a tar may be padding: its samples are checked one by one, also in a compressed one.
    assert lost > 0 or kind.startswith("tar")
    if lost:
        with (
            hr.Loader(stream, batch_size=10, drop_last=False, rank=0, world_size=1) as loader,
            pytest.raises(DatasetError),
        ):
            for _ in loader:
                pass


def test_it_packs_into_every_format_that_is_written(made, tmp_path, kind):
    """Conversion keeps keys, order and values, as far as the target has types for them."""
    source = hr.open(made(kind)[1])
    for name, format_ in FORMATS.items():
        if format_.writer is None or name == "tokens":
            continue
        hr.pack(source, tmp_path / name, format=name, shuffle=False)
        target = hr.open(tmp_path / name)
        assert target.verify() == []
        assert [one["__key__"] for one in target] == [one["__key__"] for one in SAMPLES]
        again = [plain_sample(one) for one in target]
        once = [plain_sample(one) for one in source]
        assert again == [converted(name, one) for one in once]


def converted(name, one):
    """What a format without a type for it makes of a value."""
    if name == "tar":
        return {field: as_text(value) if field != "__key__" else value for field, value in one.items()}
    return one


def as_text(value):
    return value if isinstance(value, bytes) else str(value).encode()
