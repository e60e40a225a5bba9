"""Steps of packing, one by one: what each makes of a sample, and what it refuses."""

import pickle
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import OptionError, SourceError, TransformError
from headrace.packing.steps import CheckImages, Fill, Require, ShrinkImages, Tokenize, Where
from headrace.packing.steps.missing import parse_fill

SAMPLE = {"__key__": "d/a", "label": 3, "score": 0.5, "text": "Hello", "cls": b"7", "json": b'{"a": [1, 2]}', "n": None}


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("label == 3", True),
        ("label != 3 or score < 1", True),
        ("1 < label < 3", False),
        ("label in (1, 3)", True),
        ("not text", False),
        ("len(text) > 4 and startswith(text, 'He')", True),
        ("lower(text) == 'hello'", True),
        ("cls >= 7", True),
        ("json['a'][1] == 2", True),
        ("n is None and missing is None", True),
        ("(label * 2 + 1) % 7 == 0", True),
        ("field('text') == 'Hello'", True),
        ("startswith(__key__, 'd/')", True),
        ("'x' if label else 0", True),
        ("-score < 0", True),
    ],
)
def test_where_keeps_what_is_true(expression, kept):
    step = pickle.loads(pickle.dumps(Where(expression)))
    assert step(SAMPLE) == (SAMPLE if kept else None)
    assert repr(step) == f"Where(expression={expression!r})"


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "text.upper()", "(lambda: 1)()", "[x for x in text]", "open('f')", "2 ** 9", "label = 3", "",
     "a b", "f'{label}'", "text.__class__", "len(*text)", "min(key=1)", "yield", "label; label"],
)  # fmt: skip
def test_where_can_only_compare(expression):
    with pytest.raises(OptionError, match="where"):
        Where(expression)


@pytest.mark.parametrize("expression", ["n > 3", "text * 9", "'%9d' % label", "json['b']", "label / 0", "int(text)"])
def test_where_says_which_sample_does_not_fit(expression):
    with pytest.raises(TransformError, match=r"sample 'd/a': where .* failed"):
        Where(expression)(SAMPLE)


@given(st.text(max_size=30))
def test_no_text_makes_where_do_anything_but_refuse_or_compare(text):
    try:
        step = Where(text)
    except OptionError:
        return
    try:
        assert step(SAMPLE) in (SAMPLE, None)
    except TransformError as err:
        assert "\n" not in str(err).replace(repr(text), "")  # noqa: PT017


def test_missing_values_are_filled_or_a_reason_to_leave_out():
    sample = {"__key__": "a", "x": None, "y": float("nan"), "z": "", "w": 0}
    assert Fill((("x", 1), ("y", 2.5), ("z", "none"), ("w", 9), ("v", [])))(sample) == {
        "__key__": "a", "x": 1, "y": 2.5, "z": "none", "w": 0, "v": [],
    }  # fmt: skip
    assert Require(("w",))(sample) is sample
    for name in ("x", "y", "z", "v"):
        assert Require((name,))(sample) is None
    for wrong in ((), ("a", "a"), ("__key__",), ("",)):
        with pytest.raises(OptionError):
            Require(wrong)


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=1.5", 1.5), ("a=null", None), ('a="1"', "1"), ("a=x y", "x y"), ("a=", ""), ("a=b=c", "b=c")],
)
def test_fill_takes_json_or_text(text, value):
    assert parse_fill(text) == ("a", value)


@pytest.mark.parametrize("text", ["", "a", "=1"])
def test_fill_needs_a_field_and_a_value(text):
    with pytest.raises(OptionError, match="FIELD=VALUE"):
        parse_fill(text)


def jpeg(height, width):
    file = BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_images_shrink_by_name_or_by_schema_and_other_fields_stay():
    sample = {"__key__": "a", "jpg": jpeg(200, 300), "photo": memoryview(jpeg(200, 300)), "txt": b"x", "cls": 1}
    made = ShrinkImages(64, None, 90, frozenset({"photo"}))(sample)
    assert [Image.open(BytesIO(made[name])).size for name in ("jpg", "photo")] == [(96, 64), (96, 64)]
    assert (made["txt"], made["cls"], made["__key__"]) == (b"x", 1, "a")
    assert ShrinkImages(64, None, 90)(sample)["photo"] is sample["photo"]


def test_a_broken_image_is_named():
    broken = {"__key__": "a", "jpg": jpeg(20, 30)[:-40]}
    png = BytesIO()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(png, "PNG")
    for sample in (broken, {"__key__": "a", "png": png.getvalue()[:-20]}):
        with pytest.raises(SourceError, match="sample 'a': field"):
            CheckImages()(sample)
    assert CheckImages()({"__key__": "a", "png": png.getvalue(), "txt": b"no image"})


@pytest.fixture
def tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "hello": 1, "world": 2, "<|endoftext|>": 3}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_text_becomes_tokens_with_the_end_of_the_text(tokenizer):
    step = Tokenize.load(tokenizer)
    made = pickle.loads(pickle.dumps(step))({"__key__": "a", "txt": b"hello world you", "cls": b"1"})
    assert made["tokens"].tolist() == [1, 2, 0, 3]
    assert made["tokens"].dtype == np.uint16
    assert set(made) == {"__key__", "tokens"}


def test_bytes_are_tokens_without_a_tokenizer():
    made = Tokenize.load("bytes")({"__key__": "a", "text": "añ"})
    assert made["tokens"].tolist() == list("añ".encode())


def test_what_cannot_be_tokenized_is_said(tokenizer, tmp_path):
    step = Tokenize.load(tokenizer)
    for sample, message in [
        ({"__key__": "a", "jpg": b""}, "must have one text field"),
        ({"__key__": "a", "txt": b"x", "text": "y"}, "must have one text field"),
        ({"__key__": "a", "txt": b"\xff"}, "is not UTF-8"),
        ({"__key__": "a", "txt": 3}, "is not UTF-8"),
    ]:
        with pytest.raises(SourceError, match=message):
            step(sample)
    assert Tokenize.load("bytes", "body")({"__key__": "a", "body": "x", "text": "y"})["tokens"].tolist() == [120]
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(OptionError, match="cannot be read"):
        Tokenize.load(str(tmp_path / "wrong.json"))
