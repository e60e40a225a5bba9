from __future__ import annotations

from pathlib import Path
from typing import Literal, Optional

import pytest

from headrace.errors import OptionError, RecipeError
from headrace.train.settings import parse_settings, parse_value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "12", 12),
        (int, "-3", -3),
        (float, "3e-4", 3e-4),
        (float, "1", 1.0),
        (bool, "true", True),
        (bool, "No", False),
        (bool, "0", False),
        (str, "a=b,c", "a=b,c"),
        (str, "", ""),
        (Path, "data/x", Path("data/x")),
        (int | None, "none", None),
        (int | None, "4", 4),
        (Optional[float], "None", None),  # noqa: UP045 - how many still write it
        (int | str, "4", 4),
        (int | str, "four", "four"),
        (Literal["sgd", "adamw"], "sgd", "sgd"),
        (Literal[1, 2], "2", 2),
        (tuple[int, int], "3,4", (3, 4)),
        (tuple[float, ...], "1,2.5,3", (1.0, 2.5, 3.0)),
        (list[str], "a,b", ["a", "b"]),
        (list[int], "", []),
    ],
)
def test_text_becomes_a_value_of_the_annotated_type(kind, text, value):
    found = parse_value(kind, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "1.5"),
        (int, ""),
        (float, "fast"),
        (bool, "maybe"),
        (int | None, "nothing"),
        (Literal["sgd"], "adam"),
        (tuple[int, int], "1,2,3"),
        (dict, "x"),
    ],
)
def test_text_of_another_type_is_refused(kind, text):
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says which setting
        parse_value(kind, text)


def recipe(*, lr: float = 1e-3, data: str, steps: int | None = None, deep=True):
    return lr, data, steps, deep


def test_defaults_are_left_to_the_recipe_and_the_last_of_a_name_counts():
    assert parse_settings(recipe, ["data=x", "lr=1", "lr=2"]) == {"data": "x", "lr": 2.0}


def test_a_parameter_without_annotation_has_the_type_of_its_default():
    assert parse_settings(recipe, ["data=x", "deep=off"])["deep"] is False


def test_an_unknown_name_is_refused_with_the_settings_there_are():
    with pytest.raises(
        OptionError, match=r"no setting 'rate': it has lr: float = 0\.001; data: str; steps: int | None"
    ):
        parse_settings(recipe, ["rate=1"])


def test_a_wrong_value_names_the_setting_and_its_type():
    with pytest.raises(OptionError, match="setting lr must be of type float: got 'fast'"):
        parse_settings(recipe, ["data=x", "lr=fast"])


def test_a_missing_value_names_the_way_out():
    with pytest.raises(OptionError, match="needs data: give --set data=VALUE"):
        parse_settings(recipe, [])


def test_an_assignment_needs_an_equals_sign():
    with pytest.raises(OptionError, match="name=value: got 'lr'"):
        parse_settings(recipe, ["lr"])


def test_a_parameter_whose_type_cannot_be_known_is_the_recipes_error():
    with pytest.raises(RecipeError, match="x has neither"):
        parse_settings(lambda x: x, [])
    with pytest.raises(RecipeError, match="parameters must have names"):
        parse_settings(lambda *x: x, [])
