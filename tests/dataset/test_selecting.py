"""Subsets: the samples that were asked for, in that order, exactly as the dataset gives them."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import DamagedError, OptionError

NUM = 60


def sample(i):
    return {"__key__": f"k{i:03d}", "txt": f"text {i}" * (1 + i % 7), "cls": i % 3}


@pytest.fixture(scope="module", params=["tar", "tar.gz", "parquet", "parquet[txt]", "windows", "files"])
def whole(request, tmp_path_factory):
    """Sixty samples in some shards, read by ranges or as a whole."""
    folder = tmp_path_factory.mktemp("data")
    if request.param == "tar":
        hr.pack(map(sample, range(NUM)), folder / "d", shard_size=20_000, shuffle=False)
        return hr.open(folder / "d")
    if request.param == "windows":
        tokens = ({"tokens": np.arange(k, k + 40)} for k in range(20))
        hr.pack(tokens, folder / "d", format="tokens", shard_size=400, shuffle=False)
        return hr.open(folder / "d").windows(8)
    if request.param == "tar.gz":
        hr.pack(map(sample, range(NUM)), folder / "d", shard_size=20_000, shuffle=False)
        for shard in (folder / "d").glob("*.tar"):
            __import__("subprocess").run(["gzip", shard], check=True)
        for other in (folder / "d").glob("*.idx"):
            other.unlink()
        for name in ("headrace.json", "headrace.keys"):
            (folder / "d" / name).unlink()
        return hr.open(folder / "d")
    if request.param == "files":
        for i in range(NUM):
            (folder / f"k{i:03d}.txt").write_text(f"text {i}")
        return hr.open(folder)
    table = pa.table({"__key__": [f"k{i:03d}" for i in range(NUM)], "txt": [f"text {i}" for i in range(NUM)]})
    table = table.append_column("cls", pa.array([i % 3 for i in range(NUM)]))
    pq.write_table(table, folder / "a.parquet", row_group_size=17)
    return hr.open(folder, fields=["txt"] if "[" in request.param else None)


def plain(sample):
    return {name: np.asarray(value).tobytes() if name != "__key__" else value for name, value in sample.items()}


def all_of(dataset):
    return [plain(dataset[i]) for i in range(len(dataset))]


@given(st.lists(st.integers(-30, 29), min_size=1, max_size=40))
def test_a_selection_has_the_samples_asked_for_in_that_order(whole, numbers):
    some = whole.select(numbers)
    assert len(some) == len(numbers)
    assert all_of(some) == [plain(whole[i]) for i in numbers]
    assert [plain(one) for one in some[:]] == all_of(some)
    assert some.selected_numbers.tolist() == [i % len(whole) for i in numbers]


@given(st.data())
def test_a_selection_of_a_selection_and_a_sample_of_one(whole, data):
    numbers = data.draw(st.lists(st.integers(0, 29), min_size=2, max_size=30))
    inner = data.draw(st.lists(st.integers(0, len(numbers) - 1), min_size=1, max_size=20))
    twice = whole.select(numbers).select(inner)
    assert all_of(twice) == [plain(whole[numbers[k]]) for k in inner]
    share = data.draw(st.sampled_from([0.1, 0.5, 1]))
    drawn = whole.select(numbers).sample(share, seed=3)
    assert len(drawn) == max(1, round(share * len(numbers)))
    assert set(drawn.selected_numbers.tolist()) <= set(numbers)
    assert pickle.loads(pickle.dumps(drawn)).selected_numbers.tolist() == drawn.selected_numbers.tolist()


@given(st.floats(0.01, 1), st.integers(0, 2**63 - 1))
def test_a_sample_is_of_exactly_that_size_without_repeats_in_storage_order(whole, fraction, seed):
    some = whole.sample(fraction, seed)
    numbers = some.selected_numbers.tolist()
    assert len(some) == len(numbers) == max(1, round(fraction * len(whole)))
    assert numbers == sorted(set(numbers))
    assert numbers == whole.sample(fraction, seed).selected_numbers.tolist()


def test_every_sample_is_drawn_as_often_as_another(whole):
    drawn = np.bincount(
        np.concatenate([whole.sample(0.3, seed).selected_numbers for seed in range(400)]), minlength=len(whole)
    )
    assert 60 < drawn.min() <= drawn.max() < 190  # 120 expected; seven standard deviations


def test_a_predicate_sees_every_sample_once_and_keeps_those_it_likes(whole):
    seen = []

    def likes(sample):
        seen.append(sample["__key__"])
        return len(seen) % 3 == 1

    some = whole.select(likes)
    assert seen == [whole[i]["__key__"] for i in range(len(whole))]
    assert some.selected_numbers.tolist() == list(range(0, len(whole), 3))


def test_a_mask_is_one_boolean_a_sample(whole):
    mask = np.zeros(len(whole), bool)
    mask[[3, 17]] = True
    assert whole.select(mask).selected_numbers.tolist() == [3, 17]


def test_a_key_is_found_only_where_it_is_selected(whole):
    some = whole.select([5, 2])
    key = whole[2]["__key__"]
    assert plain(some.lookup(key)) == plain(whole[2])
    with pytest.raises(KeyError, match="no sample has the key"):
        some.lookup(whole[3]["__key__"])


def test_fingerprints_tell_selections_apart(whole):
    views = [
        whole,
        whole.select([1, 2]),
        whole.select([2, 1]),
        whole.select([1]),
        whole.sample(0.5),
        whole.sample(0.5, 1),
    ]
    assert len({view.fingerprint for view in views}) == len(views)
    assert whole.select([1, 2]).fingerprint == whole.select(np.array([1, 2])).fingerprint
    assert whole.select([1, 2]) == whole.select([1, 2])
    assert whole.select([1, 2]) != whole.select([1, 3])


def test_a_stream_of_a_selection_is_exactly_once_and_resumes(whole):
    numbers = list(range(0, len(whole), 2))
    stream = hr.Stream(whole.select(numbers), seed=4)

    def keys(loader):
        return [key for batch in loader for key in batch["__key__"]]

    with hr.Loader(stream, batch_size=4, drop_last=False) as loader:
        straight = keys(loader)
    assert sorted(straight) == sorted(whole[i]["__key__"] for i in numbers)
    with hr.Loader(stream, batch_size=4, drop_last=False) as loader:
        batches = iter(loader)
        first = [key for _ in range(3) for key in next(batches)["__key__"]]
        state = json.loads(json.dumps(loader.state_dict()))
    with hr.Loader(stream, batch_size=4, drop_last=False) as loader:
        loader.load_state_dict(state)
        assert first + keys(loader) == straight


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([], "keeps at least one sample: none of the"),
        ([10**6], "end at .*: got 1,000,000"),
        ([-(10**6)], "end at"),
        ([1.5], "are selected by whole numbers"),
        (["a"], "are selected by whole numbers"),
        ([[1]], "are selected by whole numbers"),
        (3, "are selected by whole numbers, a mask .*: got 3"),
        (None, "are selected by whole numbers, a mask .*: got None"),
        (np.array([2**64 - 1], np.uint64), "end at .*: got 18,446,744,073,709,551,615"),
        (np.ones(3, bool), r"a mask has one boolean a sample: got \(3,\)"),
        (lambda sample: False, "none of the"),
    ],
)
def test_what_selects_nothing_is_refused(whole, numbers, reason):
    with pytest.raises(OptionError, match=reason):
        whole.select(numbers)


@pytest.mark.parametrize("fraction", [0, -1, 1.01, float("nan"), True, "0.1"])
def test_no_share_of_a_dataset_is_refused(whole, fraction):
    with pytest.raises(OptionError, match="above 0 and at most 1"):
        whole.sample(fraction)


@pytest.mark.parametrize("seed", ["a", 1.5, True, None])
def test_a_seed_is_a_whole_number(whole, seed):
    with pytest.raises(OptionError, match="seed must be a whole number: got"):
        whole.sample(0.5, seed)


def test_numbers_of_numpy_are_numbers(whole):
    some = whole.sample(np.float32(0.5), np.int64(3))
    assert some.selected_numbers.tolist() == whole.sample(0.5, 3).selected_numbers.tolist()


def test_groups_are_the_samples_of_each_value(tmp_path):
    hr.pack(map(sample, range(NUM)), tmp_path / "d", shuffle=False)
    groups = hr.open(tmp_path / "d").group_by("cls")
    assert list(groups) == [0, 1, 2]
    assert [groups[c].selected_numbers.tolist() for c in groups] == [list(range(c, NUM, 3)) for c in range(3)]
    assert "txt" in groups[1][0]
    with pytest.raises(OptionError, match="has no 'klass'"):
        hr.open(tmp_path / "d").group_by("klass")


def test_only_what_is_selected_is_read(tmp_path, monkeypatch):
    """Samples far apart are read one by one; what lies between is not."""
    data = np.random.default_rng(0).bytes(200_000)
    hr.pack(({"bin": data} for _ in range(20)), tmp_path / "d", shuffle=False)
    some = hr.open(tmp_path / "d").select([0, 1, 10, 19])
    index = some.piece(0)
    assert sum(part.length for part in index.ranges(0, 4)) < 4 * 202_000
    assert len(index.ranges(0, 4)) == 3


def test_damage_in_a_selection_is_no_less_noticed(tmp_path):
    hr.pack(map(sample, range(NUM)), tmp_path / "d", shuffle=False)
    shard = tmp_path / "d" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    at = content.find(b"text 7")
    content[at] ^= 1
    shard.write_bytes(content)
    some = hr.open(tmp_path / "d").select([6, 7, 8])
    assert some[0]["__key__"] == "k006"
    with pytest.raises(DamagedError, match="sample k007 of"):
        some[1]
    assert some.verify() == hr.open(tmp_path / "d").verify() != []


def test_a_selection_can_be_packed(tmp_path, whole):
    hr.pack(whole.select([4, 2, 9]), tmp_path / "out", format="parquet", shuffle=False)
    assert [one["__key__"] for one in hr.open(tmp_path / "out")[:]] == [whole[i]["__key__"] for i in (4, 2, 9)]
