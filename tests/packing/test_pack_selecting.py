"""Choosing and changing samples while packing: what is kept is exact, in its stated order, and the same every time."""

import json
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import headrace as hr
from headrace.errors import OptionError, SourceError
from headrace.packing.selections import Sampled


def samples(number):
    return [{"__key__": f"s{i:04d}", "label": i % 3, "text": f"text {i % 40}", "n": i} for i in range(number)]


def packed(tmp_path, source, name="out", **options):
    hr.pack(source, tmp_path / name, format="mds", **options)
    return list(hr.open(tmp_path / name))


def test_conditions_then_content_then_a_share(tmp_path):
    rows = packed(tmp_path, samples(600), where="label != 1", dedup=["text", "label"], sample=0.5, seed=3)
    assert all(row["label"] != 1 for row in rows)
    contents = Counter((row["text"], row["label"]) for row in rows)
    assert max(contents.values()) == 1
    # 40 texts by 2 labels are 80 contents (texts and labels meet in every pair), of which half is kept.
    assert len(rows) == 40
    assert all(row["n"] < 120 for row in rows), "of equal samples the first stays"


def test_a_share_of_each_class_is_exact_and_follows_the_seed(tmp_path):
    source = [{"__key__": f"{i}", "label": min(i % 10, 4), "x": i} for i in range(1000)]
    first = packed(tmp_path, list(source), "a", sample=0.1, stratify="label")
    assert Counter(row["label"] for row in first) == {0: 10, 1: 10, 2: 10, 3: 10, 4: 60}
    again = packed(tmp_path, list(source), "b", sample=0.1, stratify="label", workers=1)
    other = packed(tmp_path, list(source), "c", sample=0.1, stratify="label", seed=1)
    keys = [{row["__key__"] for row in rows} for rows in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


@given(st.floats(0.001, 1), st.integers(1, 3000), st.integers(0, 2**31))
def test_a_share_is_exact_to_one_sample_at_any_prefix(fraction, number, seed):
    selection = Sampled(fraction, seed)
    kept = 0
    for n in range(1, number + 1):
        kept += selection.keeps("", "")
        assert abs(kept - n * fraction) <= 1


def test_whole_samples_are_compared_without_their_keys(tmp_path):
    source = [{"__key__": f"{i}", "data": bytes([i % 7]), "v.npy": np.array([i % 7])} for i in range(50)]
    assert len(packed(tmp_path, source, dedup=True)) == 7


def test_missing_values_are_filled_before_conditions_see_them(tmp_path):
    source = [{"__key__": f"{i}", "a": None if i % 2 else i, "b": "x" if i % 3 else ""} for i in range(60)]
    rows = packed(tmp_path, source, fill={"a": -1}, where="a == -1", require=["b"])
    assert {row["a"] for row in rows} == {-1}
    assert {row["b"] for row in rows} == {"x"}
    assert len(rows) == 20


def jpeg(height, width, seed):
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    for i in range(12):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(120, 200, i))
    return tmp_path / "photos"


def test_images_are_made_smaller_and_the_manifest_knows_their_size(photos, tmp_path):
    manifest = hr.pack(photos, tmp_path / "small", resize_short=30)
    assert manifest.fields["jpg"].image_size == (30, 50)
    large = hr.pack(photos, tmp_path / "large")
    assert manifest.bytes < large.bytes / 2
    with pytest.raises(hr.errors.TargetError, match="another source or options"):
        hr.pack(photos, tmp_path / "small", resize_short=31)


def test_broken_images_are_dropped_and_listed(photos, tmp_path):
    (photos / "cat" / "0.jpg").write_bytes(jpeg(120, 200, 0)[:3000])
    png = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)).save(png, "PNG")
    damaged = bytearray(png.getvalue())
    damaged[200] ^= 255
    (photos / "dog" / "x.png").write_bytes(damaged)
    manifest = hr.pack(photos, tmp_path / "out", drop_broken=True)
    assert (manifest.samples, manifest.skipped) == (11, 2)
    listed = (tmp_path / "out" / "headrace.skipped.jsonl").read_text()
    assert "cat/0" in listed
    assert "dog/x" in listed


def test_text_becomes_token_shards(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(5):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"document {i}")
    hr.pack(tmp_path / "texts", tmp_path / "tokens", format="tokens", tokenizer="bytes", shuffle=False)
    ds = hr.open(tmp_path / "tokens")
    assert bytes(ds[3]["tokens"].astype(np.uint8)) == b"document 3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stratify": "label"}, "stratify goes with sample"),
        ({"quality": 80}, "quality goes with resize_short or max_side"),
        ({"text_field": "x"}, "text_field goes with tokenizer"),
        ({"sample": 0}, "over 0 and at most 1"),
        ({"sample": 1.5}, "over 0 and at most 1"),
        ({"where": "import os"}, "where must be an expression"),
        ({"resize_short": 0}, "at least 1"),
        ({"require": "label"}, "lists of fields"),
        ({"dedup": []}, "dedup must name fields of the samples: got \\[\\]"),
        ({"dedup": [""]}, "dedup must name fields"),
        ({"dedup": ["a", "a"]}, "dedup must name each field once"),
        ({"sample": 0.5, "stratify": ""}, "stratify must name fields"),
        ({"tokenizer": "/nowhere/tokenizer.json"}, "cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(tmp_path, options, message):
    def never():
        raise AssertionError("the source was read")
        yield

    with pytest.raises(OptionError, match=message):
        hr.pack(never(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_field_that_is_not_there_is_said(tmp_path):
    for options in ({"dedup": ["nothing"]}, {"sample": 0.5, "stratify": "nothing"}):
        with pytest.raises(SourceError, match="has no field 'nothing'"):
            hr.pack(samples(9), tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"where": "lable == 3"}, "no field 'lable', which where or require names: did you mean 'label'?"),
        ({"require": ["Text"]}, "no field 'Text', which where or require names: did you mean 'text'?"),
        ({"where": "zzz > 3"}, "which where or require names: the fields are 'label', 'n', 'text'"),
        ({"dedup": ["texts"]}, "which dedup names: did you mean 'text'?"),
        ({"sample": 0.5, "stratify": "labels"}, "which sample names: did you mean 'label'?"),
    ],
)
def test_a_misspelt_field_is_said_before_any_work(tmp_path, monkeypatch, options, said):
    hr.pack(samples(9), tmp_path / "packed", format="mds")
    rows = "".join(f"{json.dumps(sample)}\n" for sample in samples(9))
    (tmp_path / "rows.jsonl").write_text(rows)
    monkeypatch.setattr("headrace.packing.survey.Survey._look_through", None)  # nothing gets as far as that
    for source in ("packed", "rows.jsonl"):
        with pytest.raises(OptionError) as caught:
            hr.pack(tmp_path / source, tmp_path / "out", **options)
        assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_misspelt_field_of_what_is_only_known_when_read_is_said_at_the_end(tmp_path, caplog):
    said = "no sample had a field 'lable', which where or require names: did you mean 'label'?"
    with pytest.raises(SourceError, match="of 9 samples 9 are left out by where and require; ") as caught:
        hr.pack(samples(9), tmp_path / "out", where="lable == 1")
    assert said in str(caught.value)
    with caplog.at_level("WARNING"):
        hr.pack(samples(9), tmp_path / "out", where="lable is None or label == 1")
    assert caplog.messages == [said]


def test_a_field_that_only_some_samples_have_or_that_is_filled_in_is_no_mistake(tmp_path, caplog):
    source = [{"__key__": f"{i}", "n": i} | ({"rare": 1} if i == 400 else {}) for i in range(500)]
    options = {"where": "rare is None or rare == 1", "fill": {"new": 7}, "require": ["new"]}
    assert hr.pack(source, tmp_path / "out", **options).samples == 500
    assert caplog.messages == []


def test_nothing_left_says_why(tmp_path):
    with pytest.raises(SourceError, match="nothing is left to pack: of 9 samples 9 are left out by where and require"):
        hr.pack(samples(9), tmp_path / "out", where="n > 100")
