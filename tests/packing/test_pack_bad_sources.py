"""Broken sources: each gets one line with the file's name, the reason and the way out, and leaves nothing behind."""

import os
import re
import sys

import numpy as np
import orjson
import pytest

import headrace as hr
from headrace.errors import HeadraceError, OptionError, SourceError, StorageError, TargetError, TransformError


def refusal(source, target, **options):
    with pytest.raises(HeadraceError) as caught:
        hr.pack(source, target, **options)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    return caught.value


def break_one(images, kind, make_png):
    path = images / "dog" / "bad.png"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(make_png(0)[:-30])
    elif kind == "text":
        path.write_bytes(b"no image at all")
    elif kind == "link":
        path.symlink_to(images / "nowhere.png")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "newline":
        path = images / "dog" / "bad\nname.png"
        path.write_bytes(make_png(0))
    elif kind == "newline at the top":
        (images / "bad\nname.png").write_bytes(make_png(0))
    elif kind == "bytes":
        with open(os.fsencode(images) + b"/dog/bad\xff.png", "wb") as file:
            file.write(make_png(0))
    elif kind == "duplicate":
        path.write_bytes(make_png(0))
        (images / "dog" / "bad.PNG").write_bytes(make_png(1))


BROKEN = {
    "empty": r"dog/bad\.png is empty \(0 bytes\)",
    "cut": r"dog/bad\.png ends early",
    "text": r"dog/bad\.png is not an image",
    "link": r"dog/bad\.png is a link to a file that is not there",
    "circle": r"cannot read .*dog/bad\.png: Too many levels of symbolic links",
    "newline at the top": r"'bad\\nname\.png' .* holds a line break",
    "newline": r"'dog/bad\\nname\.png' .* holds a line break",
    "bytes": r"'dog/bad\\udcff\.png' .* not UTF-8: rename it",
    "duplicate": r"dog/bad\.PNG and .*dog/bad\.png are the same field 'png'",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_the_way_out(images, tmp_path, make_png, kind):
    break_one(images, kind, make_png)
    err = refusal(images, tmp_path / "out")
    assert isinstance(err, SourceError)
    assert re.search(BROKEN[kind], str(err)), err
    assert "--on-error skip" in str(err)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_skipped_counted_and_listed(images, tmp_path, make_png, kind):
    break_one(images, kind, make_png)
    manifest = hr.pack(images, tmp_path / "out", on_error="skip")
    assert (manifest.samples, manifest.skipped) == (60, 1)
    (line,) = (tmp_path / "out" / "headrace.skipped.jsonl").read_bytes().splitlines()
    assert set(orjson.loads(line)) == {"key", "reason"}
    assert hr.open(tmp_path / "out").verify() == []


def test_when_everything_is_broken_nothing_is_packed(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(b"x")
    err = refusal(source, tmp_path / "out", on_error="skip")
    assert "nothing is left to pack: of 1 samples 1 are broken" in str(err)


def test_a_missing_source_is_said(tmp_path):
    assert "nowhere does not exist" in str(refusal(tmp_path / "nowhere", tmp_path / "out"))


def test_an_empty_source_is_said(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    assert "holds nothing to pack: it is empty" in str(refusal(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "in" / "deep" / ".hidden").write_bytes(b"x")
    assert "holds nothing to pack: 1 hidden files" in str(refusal(tmp_path / "in", tmp_path / "out"))


def test_class_folders_that_differ_by_case_are_both_named(images, tmp_path, make_png):
    (images / "Cat").mkdir()
    (images / "Cat" / "a.png").write_bytes(make_png(1))
    err = refusal(images, tmp_path / "out", on_error="skip")
    assert "class folders Cat and cat in" in str(err)
    assert "differ only by case" in str(err)


def test_a_file_of_no_format_is_refused(tmp_path):
    (tmp_path / "a.xyz").write_bytes(b"\0\1\2")
    assert "a.xyz is a file of no format that headrace reads" in str(refusal(tmp_path / "a.xyz", tmp_path / "out"))


@pytest.mark.parametrize("source", [17, None, {"a": 1}, b"path"])
def test_what_is_no_source_is_refused(tmp_path, source):
    assert isinstance(refusal(source, tmp_path / "out"), OptionError)


@pytest.mark.parametrize("below", ["", "out", "cat/out"])
def test_a_target_inside_its_source_is_refused(images, below):
    with pytest.raises(TargetError, match="lies inside the source"):
        hr.pack(images, images / below)


def test_a_transform_that_raises_names_the_sample(images, tmp_path):
    def transform(sample):
        if sample["__key__"] == "dog/001":
            raise KeyError("label")
        return sample

    err = refusal(images, tmp_path / "out", transform=transform)
    assert isinstance(err, TransformError)
    assert "the transform failed on sample dog/001: KeyError: 'label'" in str(err)
    assert hr.pack(images, tmp_path / "out", transform=transform, on_error="skip").skipped == 1


@pytest.mark.parametrize("result", [7, "text", [1], ({"txt": b""},)])
def test_a_transform_that_returns_something_else_is_refused(images, tmp_path, result):
    err = refusal(images, tmp_path / "out", transform=lambda sample: result)
    assert "must return a dict, None or a list of dicts" in str(err)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "the iterable gave nothing to pack: it is empty"),
        ([1], "sample number 0 of the iterable must be a dict"),
        ([{"txt": "a"}, {"__key__": 5, "txt": "a"}], "sample number 1 of the iterable: `__key__` must be text"),
        ([{"__key__": "a\nb", "txt": "a"}], r"holds a line break"),
        ([{"__key__": "a\udcff", "txt": "a"}], r"not UTF-8"),
        ([{"__key__": "a", "txt": "a"}, {"__key__": "a", "txt": "b"}], "the key a is there twice"),
        ([{"png": b"no image"}], "sample number 0 of the iterable, field 'png', is not an image"),
        ([{"arr": np.zeros(3)}], "name it 'arr.npy'"),
        ([{}], "has no fields"),
        ([{5: b"x"}], "sample 000000000: fields are named by text, got [5, '__key__']"),
        ([{"txt": "\udcff"}], "field 'txt' holds text that is not UTF-8"),
    ],
)
def test_broken_iterables_are_refused_with_the_number(tmp_path, samples, reason):
    assert reason in str(refusal(samples, tmp_path / "out"))


def test_a_transform_that_exits_is_a_transform_that_fails(images, tmp_path):
    """Else the command would end with the code that the transform chose, and nothing said."""
    err = refusal(images, tmp_path / "out", transform=lambda sample: sys.exit(0))
    assert re.search(r"the transform failed on sample \w+/\d+: SystemExit: 0", str(err))


def test_a_reason_that_is_not_utf8_is_listed_escaped(images, tmp_path):
    def transform(sample):
        if sample["__key__"] == "dog/001":
            raise ValueError("\udcff")
        return sample

    assert hr.pack(images, tmp_path / "out", transform=transform, on_error="skip").skipped == 1
    assert r"\\udcff" in (tmp_path / "out" / "headrace.skipped.jsonl").read_text()


@pytest.mark.parametrize("how", ["gone", "longer", "a pipe"])
def test_a_file_that_changes_while_packing_is_said(images, tmp_path, how):
    path = images / "eel" / "059.png"

    def transform(sample):
        if path.exists() and path.stat().st_size:
            path.unlink()
            if how == "longer":
                path.write_bytes(bytes(1000))
            elif how == "a pipe":
                os.mkfifo(path)
        return sample

    err = refusal(images, tmp_path / "out", transform=transform, shuffle=False, workers=1)
    assert "eel/059.png" in str(err)
    assert ("it is not an ordinary file" if how == "a pipe" else "changed while packing") in str(err)


@pytest.mark.parametrize("split", [None, {"a": 0.5, "b": 0.5}])
def test_names_that_the_disk_does_not_take_are_one_line(images, tmp_path, split):
    with pytest.raises(StorageError, match="File name too long"):
        hr.pack(images, tmp_path / ("x" * 300), split=split)
    with pytest.raises(StorageError, match="File name too long"):
        hr.pack(tmp_path / ("x" * 300), tmp_path / "out")
    with pytest.raises(StorageError, match="File name too long"):
        hr.open(tmp_path / ("x" * 300))
