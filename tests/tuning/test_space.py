"""What is searched, as text, in the types of a recipe's signature."""

from __future__ import annotations

import pytest

from headrace.errors import OptionError
from headrace.train.settings import recipe_settings
from headrace.tuning.running import Share
from headrace.tuning.space import Choices, Range, as_text, parse_space


def recipe(
    *,
    lr: float = 0.1,
    layers: int = 2,
    limit: int | None = None,
    name: str = "a",
    flag: bool = False,
    sizes: tuple[int, ...] = (1, 2),
):
    """Only its signature matters."""


SETTINGS = recipe_settings(recipe)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("lr", "1e-4..1e-1:log", Range(1e-4, 1e-1, log=True, whole=False)),
        ("lr", "0...5", Range(0, 0.5, log=False, whole=False)),
        ("lr", "-1..1", Range(-1, 1, log=False, whole=False)),
        ("layers", "1..8", Range(1, 8, log=False, whole=True)),
        ("layers", "1..64:log", Range(1, 64, log=True, whole=True)),
        ("limit", "2..4", Range(2, 4, log=False, whole=True)),
        ("limit", "none,4", Choices(("none", "4"))),
        ("lr", "0.1,0.01", Choices(("0.1", "0.01"))),
        ("name", "../a,../b", Choices(("../a", "../b"))),
        ("flag", "yes,no", Choices(("yes", "no"))),
    ],
)
def test_a_text_is_a_range_or_a_choice_by_the_settings_type(name, text, found):
    assert parse_space(SETTINGS, {name: text}) == {name: found}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rate", "0..1", "no setting 'rate' to search: it has lr: float"),
        ("lr", "1..0", "from a low to a higher number: got '1..0'"),
        ("lr", "1..1", "from a low to a higher number"),
        ("lr", "0..1:log", "over a logarithm begins above 0"),
        ("lr", "0..1:even", "may end with :log only"),
        ("lr", "low..1", "needs values of type float: got 'low'"),
        ("layers", "1..2.5", "needs values of type int: got '2.5'"),
        ("limit", "none..4", "from a low to a higher number"),
        ("layers", "3", "two different values at least: got '3'"),
        ("layers", "3,3", "two different values"),
        ("layers", "3,four", "needs values of type int: got 'four'"),
        ("name", "0..1", "two different values at least"),
        ("sizes", "1,2", "cannot be searched"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(name, text, message):
    with pytest.raises(OptionError, match=message):
        parse_space(SETTINGS, {name: text})


def test_a_search_of_nothing_says_what_there_is():
    with pytest.raises(OptionError, match=r"settings to vary: give NAME=LOW\.\.HIGH.*the recipe has lr: float = 0.1"):
        parse_space(SETTINGS, {})


@pytest.mark.parametrize(
    ("value", "text"), [(0.012345678, "0.0123457"), (3, "3"), (True, "True"), (None, "None"), ((1, 2.5), "1,2.5")]
)
def test_values_travel_as_texts_of_settings(value, text):
    assert as_text(value) == text


def test_trials_at_a_time_have_cores_and_gpus_of_their_own():
    shares = [Share.of(slot, 2, 2, list("abcd")) for slot in range(2)]
    assert [share.devices for share in shares] == ["a,b", "c,d"]
    assert Share.of(1, 2, 2, ["a"]).devices == "a"  # too few: shared
    assert Share.of(0, 1, 1, []).devices is None
    every = set(Share.of(0, 1, 1, []).cores)
    assert set().union(*(share.cores for share in shares)) == every
    if len(every) > 1:
        assert not set(shares[0].cores) & set(shares[1].cores)
