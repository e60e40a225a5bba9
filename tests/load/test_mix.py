"""Mixtures in a loader: by their weights at any prefix, resumed exactly, the same at every world size."""

import json
from collections import Counter

import numpy as np
import pytest

import headrace as hr
from headrace.errors import OptionError, StateError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three datasets whose samples say where they come from."""
    folder = tmp_path_factory.mktemp("sources")
    for name, num in (("a", 70), ("b", 23), ("c", 5)):
        rows = ({"__key__": f"{name}{i:02d}", "x.npy": np.float32([i]), "cls": i % 2} for i in range(num))
        hr.pack(rows, folder / name, shard_size="20KiB")
    return {name: hr.open(folder / name) for name in "abc"}


def keys(loader, num_batches=None):
    """The keys of each batch."""
    found = []
    for batch in loader:
        found.append(list(batch["__key__"]))
        if len(found) == num_batches:
            break
    return found


def test_every_source_keeps_to_its_weight_at_any_prefix_of_all_epochs(sources):
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    stream = hr.mix([(sources[n], w) for n, w in weights.items()], seed=2, partitions=12, epochs=4)
    with hr.Loader(stream, batch_size=7, drop_last=False) as loader:
        came = [key for batch in keys(loader) for key in batch]
    assert len(came) == 4 * 98
    for n in range(1, len(came) + 1):
        count = Counter(key[0] for key in came[:n])
        assert all(abs(count[name] - weight * n) <= 12 for name, weight in weights.items())
    passes = Counter(came)
    for name, num in (("a", 70), ("b", 23)):
        times = [passes[f"{name}{i:02d}"] for i in range(num)]
        # Of two passes at most some partitions are in one and some in the next, a turn or two apart.
        assert max(times) - min(times) <= 2


def test_a_mixture_resumes_at_the_exact_batch_at_another_world_size(sources):
    stream = hr.mix([(sources["a"], 2), (sources["b"], 1)], seed=7, partitions=12, epochs=2)

    def steps(world_size, state=None, num=None):
        """Each step's keys in the order of positions, and the state after them."""
        ranks, after = [], None
        for rank in range(world_size):
            with hr.Loader(stream, global_batch_size=12, rank=rank, world_size=world_size) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                ranks.append(keys(loader, num))
                after = json.loads(json.dumps(loader.state_dict()))
        return [[key for row in zip(*step, strict=True) for key in row] for step in zip(*ranks, strict=True)], after

    straight, _ = steps(1)
    begun, state = steps(2, num=5)
    assert begun == straight[:5]
    assert len(json.dumps(state)) < 700
    assert steps(3, state)[0] == straight[5:]
    other = hr.mix([(sources["a"], 2), (sources["b"], 2)], seed=7, partitions=12, epochs=2)
    with pytest.raises(StateError, match="weights"):
        hr.Loader(other, global_batch_size=12).load_state_dict(state)
    shorter = hr.mix([(sources["a"], 2), (sources["b"], 1)], seed=7, partitions=12, samples_per_epoch=60)
    with pytest.raises(StateError, match="samples=93, but here it is 60: set samples_per_epoch to 93"):
        hr.Loader(shorter, global_batch_size=12).load_state_dict(state)


def test_weights_change_at_the_step_that_the_schedule_says(sources):
    stream = hr.mix(
        [(sources["a"], 1), (sources["b"], 0)],
        schedule={3: [1, 1], 10: [0, 1]},
        samples_per_epoch=60,
        partitions=12,
        epochs=3,
    )
    with hr.Loader(stream, batch_size=12) as loader:
        came = [Counter(key[0] for key in batch) for batch in keys(loader)]
    assert [batch["a"] for batch in came] == [12] * 3 + [6] * 7 + [0] * 5


def test_without_shuffling_each_source_comes_in_storage_order(sources):
    stream = hr.mix([(sources["b"], 1), (sources["c"], 1)], shuffle=False)
    with hr.Loader(stream, batch_size=1) as loader:
        came = [key for batch in keys(loader) for key in batch]
    stored = [sources["b"][i]["__key__"] for i in range(23)]
    assert [key for key in came if key[0] == "b"] == stored[:14]
    assert [key[0] for key in came[:4]] == ["b", "c", "b", "c"]


def test_tokens_are_what_weights_can_count(tmp_path):
    """A source of documents ten times as long gives a tenth of the samples for the same weight."""
    for name, length in (("short", 10), ("long", 100)):
        rows = ({"__key__": f"{name}{i}", "tokens": np.zeros(length, int)} for i in range(200))
        hr.pack(rows, tmp_path / name, format="tokens")
    pairs = [(hr.open(tmp_path / name), 1) for name in ("short", "long")]
    with hr.Loader(hr.mix(pairs, by="tokens", samples_per_epoch=220), batch_size=220) as loader:
        count = Counter(key[0] for key in keys(loader)[0])
    assert count == {"s": 200, "l": 20}


def test_classes_come_equally_often(tmp_path):
    rows = ({"__key__": f"k{i}", "cls": int(i % 10 == 0)} for i in range(100))
    hr.pack(rows, tmp_path / "d")
    stream = hr.class_balanced(hr.open(tmp_path / "d"), partitions=12)
    with hr.Loader(stream.decode(), batch_size=10) as loader:
        shares = [batch["cls"].sum().item() for batch in loader]
    assert sum(shares) == 50
    assert set(shares) <= {4, 5, 6}


def test_transforms_filters_and_tensors_work_over_all_sources(sources):
    stream = hr.mix([(sources["a"], 1), (sources["b"], 1)]).decode()
    stream = stream.filter(lambda sample: sample["cls"] == 1).map(lambda sample: {**sample, "y": sample["x.npy"] * 2})
    with hr.Loader(stream, batch_size=31) as loader:
        for batch in loader:
            assert batch["x.npy"].shape == (len(batch["__key__"]), 1)
            assert (batch["y"] == 2 * batch["x.npy"]).all()
            assert (batch["cls"] == 1).all()


@pytest.mark.parametrize(
    ("weights", "options", "reason"),
    [
        ([], {}, "has 1 to 65,536 sources: got 0"),
        ([-1], {}, "a weight is a number of at least 0: got -1"),
        ([float("nan")], {}, "a weight is a number of at least 0"),
        ([True], {}, "a weight is a number of at least 0"),
        ([0, 0], {}, r"some weight of a mixture must be above 0: got \[0, 0\]"),
        ([1, 1], {"schedule": {5: [1]}}, "one weight a source: got 1 for 2"),
        ([1, 1], {"schedule": {-5: [1, 1]}}, "a step of the schedule must be at least 0"),
        ([1, 1], {"by": "bytes"}, 'by is "samples" or "tokens"'),
        ([1, 1], {"by": "tokens"}, "mixes datasets of tokens"),
        ([1, 1], {"schedule": [(5, [1, 1])]}, r"a schedule is a dict of step -> weights, one a source: got \[\(5"),
        ([1, 1], {"schedule": {5: 1}}, "one weight a source: got 1"),
        ([1, 1], {"schedule": {2**70: [1, 1]}}, "a step of the schedule must be at least 0 and at most"),
        ([1, 1], {"samples_per_epoch": 0}, "samples_per_epoch must be at least 1"),
        ([1, 1], {"samples_per_epoch": 10**20}, "samples_per_epoch must be at least 1 and at most"),
    ],
)
def test_weights_that_cannot_be_are_refused(sources, weights, options, reason):
    pairs = list(zip([sources["a"], sources["b"]], weights, strict=False))
    with pytest.raises(OptionError, match=reason):
        hr.mix(pairs, **options)


def test_what_is_no_pair_is_refused(sources):
    with pytest.raises(OptionError, match="made of pairs"):
        hr.mix([sources["a"]])
    with pytest.raises(OptionError, match=r"from headrace\.open: got Stream"):
        hr.class_balanced(hr.Stream(sources["a"]))


def test_rows_of_documents_are_mixed_by_what_they_hold(tmp_path):
    for name, length in (("short", 10), ("long", 100)):
        rows = ({"__key__": f"{name}{i}", "tokens": np.full(length, len(name))} for i in range(200))
        hr.pack(rows, tmp_path / name, format="tokens")
    short, long = (hr.open(tmp_path / name) for name in ("short", "long"))
    with pytest.raises(OptionError, match=r'as headrace.mix\(\[\(dataset.binned\("rows", 64\), weight\), ...\]\)'):
        hr.mix([(short, 1), (long, 1)]).pack_tokens(64)
    stream = hr.mix([(short.binned("rows", 64), 3), (long.binned("rows", 64), 1)], seed=1)
    with hr.Loader(stream, batch_size=48) as loader:
        for batch in loader:
            assert batch["tokens"].shape == (48, 64)
            assert batch["tokens"].long().amax(dim=1).eq(len("short")).sum() == 36


def test_fields_of_two_types_are_said(tmp_path, sources):
    hr.pack([{"x.npy": 1}], tmp_path / "d", format="parquet")
    hr.pack([{"x.npy": "text"}], tmp_path / "e", format="parquet")
    stream = hr.mix([(hr.open(tmp_path / "d"), 1), (hr.open(tmp_path / "e"), 1)])
    with pytest.raises(OptionError, match="datasets of a mixture must give a field one type"):
        next(iter(hr.Loader(stream, batch_size=1)))
