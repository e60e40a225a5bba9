"""Law 4 over the number of ranks: a run that is saved at one world size goes on at any other that divides it.

The feeds of most tests here run in this process (see `worlds`), so that every pair of world sizes can be shown; a few
pairs are shown with loader processes.
"""

import json

import pytest
from worlds import LoaderHere, pack_numbers, run_world

import headrace as hr
from headrace.errors import OptionError, StateError

WORLD_SIZES = (1, 2, 3, 4, 6, 8, 12)
GLOBAL_BATCH_SIZE = 24  # the least that all of them divide


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """100 samples: four global batches, and one of four samples, of which most ranks have none."""
    return pack_numbers(tmp_path_factory.mktemp("numbers") / "packed", 100)


def with_noise(sample, rng):
    return {**sample, "noise": rng.random()}


def three_in_four(sample, rng):
    return rng.random() < 0.75


def noisy(dataset, **options):
    return hr.Stream(dataset, seed=3, epochs=2, **options).map(with_noise, shapes={"noise": ("float64", ())})


@pytest.mark.parametrize(
    ("describe", "drop_last"),
    [
        pytest.param(noisy, True, id="whole batches"),
        pytest.param(noisy, False, id="with the last batch"),
        pytest.param(lambda dataset: noisy(dataset, shuffle=False), False, id="storage order"),
        pytest.param(lambda dataset: noisy(dataset).filter(three_in_four), False, id="filtered"),
    ],
)
def test_a_run_saved_at_any_world_size_goes_on_at_any_other(numbers, describe, drop_last):
    """All 49 pairs, before an epoch's last batch, at its end and in the next epoch: the batches of the run that was
    never stopped, in the same order and with the same random numbers.

    What world a state comes from does not enter: at each point it is the same, whichever saved it. So one run from it
    at each world size is what would follow any of them.
    """
    stream = describe(numbers)
    options = {"make_loader": LoaderHere, "drop_last": drop_last}
    whole = run_world(stream, 1, GLOBAL_BATCH_SIZE, **options)
    per_epoch = 100 // GLOBAL_BATCH_SIZE + (not drop_last)
    assert len(whole.steps) == 2 * per_epoch
    for world_size in WORLD_SIZES[1:]:
        saved = run_world(stream, world_size, GLOBAL_BATCH_SIZE, **options)
        assert [together(step, stream) for step in saved.steps] == [together(step, stream) for step in whole.steps]
        assert saved.states == whole.states
    for stop in (per_epoch - 1, per_epoch, per_epoch + 2):
        for world_size in WORLD_SIZES:
            rest = run_world(stream, world_size, GLOBAL_BATCH_SIZE, state=whole.states[stop], **options)
            assert [together(s, stream) for s in rest.steps] == [together(s, stream) for s in whole.steps[stop:]]
            assert rest.states == whole.states[stop:]


def together(step, stream):
    """A global batch as it can be compared: what a filter took leaves no place by which to interleave the ranks."""
    return sorted(step) if stream.has_filter else step


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
def test_loader_processes_go_on_at_another_world_size(numbers, before, after):
    whole = run_world(noisy(numbers), 1, GLOBAL_BATCH_SIZE, make_loader=LoaderHere)
    head = run_world(noisy(numbers), before, GLOBAL_BATCH_SIZE, limit=3)
    assert head.steps == whole.steps[:3]
    assert len(json.dumps(head.states[-1])) < 600
    tail = run_world(noisy(numbers), after, GLOBAL_BATCH_SIZE, state=head.states[-1])
    assert tail.steps == whole.steps[3:]


def loader_at(dataset, world_size, global_batch_size, rank=0):
    return LoaderHere(hr.Stream(dataset), global_batch_size=global_batch_size, rank=rank, world_size=world_size)


def test_a_run_begun_on_five_ranks_goes_on_where_its_240_partitions_are_divided(tmp_path):
    """By default the partitions are the least common multiple of 48 and the ranks that the run began with."""
    dataset = pack_numbers(tmp_path / "packed", 500)
    whole = run_world(hr.Stream(dataset), 5, 240, make_loader=LoaderHere)
    state = whole.states[1]
    assert state["order"]["partitions"] == 240
    rest = run_world(hr.Stream(dataset), 8, 240, state=state, make_loader=LoaderHere)
    assert rest.steps == whole.steps[1:]
    for world_size, near in ((7, "6 and 8"), (9, "8 and 10"), (11, "10 and 12"), (96, "80 and 120"), (480, "240")):
        with pytest.raises(OptionError) as refused:
            loader_at(dataset, world_size, 240 if world_size < 96 else 480 * 240).load_state_dict(state)
        assert f"got {world_size} ranks for 240 partitions" in str(refused.value)
        assert str(refused.value).endswith(f"the nearest that work: {near}")


def test_a_state_of_48_partitions_is_refused_at_five_ranks_and_the_loader_stays_as_it_was(numbers):
    saved = loader_at(numbers, 4, 48).state_dict()
    loader = loader_at(numbers, 5, 60)
    before = loader.state_dict()
    with pytest.raises(OptionError, match=r"got 5 ranks for 48 partitions and a global batch of 60.*: 4 and 6$"):
        loader.load_state_dict(saved)
    assert loader.state_dict() == before


def test_a_batch_size_of_a_rank_is_another_global_batch_at_another_world_size(numbers):
    """What `batch_size` says holds for a rank, so elsewhere it makes other batches; that is refused."""
    saved = LoaderHere(hr.Stream(numbers), batch_size=6, rank=0, world_size=4).state_dict()
    there = LoaderHere(hr.Stream(numbers), batch_size=6, rank=0, world_size=2)
    with pytest.raises(StateError, match="saved with global_batch_size=24, but here it is 12: set it to 24"):
        there.load_state_dict(saved)
    same = LoaderHere(hr.Stream(numbers), batch_size=12, rank=0, world_size=2)
    same.load_state_dict(saved)
    assert same.state_dict() == saved
