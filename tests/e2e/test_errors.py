"""What goes wrong in pack, inspect and streaming, as a person meets it: the installed command, in a process of its own.

Each failure is one line that names the thing and the way out, with the promised exit code; with `--json` the same line
is in a JSON object. Nothing is lost by it: the source is as it was, a dataset that was there still verifies, and what
was half-done opens as nothing.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headrace as hr
from headrace.errors import DatasetError

COMMAND = Path(sysconfig.get_path("scripts"), "headrace")
OBEY = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # root that permissions hold for
NUM_IMAGES = 24


def headrace(*args, before=(), **options):
    return subprocess.run([*before, COMMAND, *args], capture_output=True, text=True, check=False, **options)


def fails(*args, code=1, kind=None, **options):
    """Run a command that must fail, with --json; the line it said on stderr, which is in the object on stdout too."""
    result = headrace(*args, "--json", **options)
    message = one_line(result, code)
    error = json.loads(result.stdout)["error"]
    assert error["message"] == message
    assert kind in (None, error["type"])
    return message


def one_line(result, code):
    assert result.returncode == code, result
    (line,) = result.stderr.splitlines()
    assert result.stderr == line + "\n"
    assert line.startswith("headrace: ")
    assert not line.startswith("headrace: unexpected")
    return line.removeprefix("headrace: ")


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((6, 6), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Two class folders of small images."""
    return make_images(tmp_path / "images")


def make_images(folder):
    for number in range(NUM_IMAGES):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


@pytest.fixture
def packed(tmp_path, images):
    """A dataset of several shards."""
    hr.pack(images, tmp_path / "packed", shard_size=10_000)
    return tmp_path / "packed"


def content(folder):
    """Every file below a folder and its bytes, by names as the disk has them."""
    return {
        os.path.join(where, name): Path(os.fsdecode(os.path.join(where, name))).read_bytes()
        for where, _, names in os.walk(os.fsencode(folder))
        for name in names
        if os.path.isfile(os.path.join(where, name))
    }


def is_whole(dataset):
    return hr.open(dataset).verify() == []


# Sources. Each breaks the folder of images in one way and says what the line must hold.


def remove(images):
    shutil.rmtree(images)
    return str(images), "does not exist", "check the path"


def empty(images):
    shutil.rmtree(images)
    images.mkdir()
    return str(images), "holds nothing to pack: it is empty"


def nothing_usable(images):
    shutil.rmtree(images)
    images.mkdir()
    (images / "LICENSE").write_text("no extension")
    return str(images), "holds nothing to pack: 1 files without an extension"


def empty_classes(images):
    shutil.rmtree(images)
    (images / "cat").mkdir(parents=True)
    (images / "dog").mkdir()
    return str(images), "holds nothing to pack"


def a_file(images):
    shutil.rmtree(images)
    images.write_text("a,b")
    return str(images), "is a file", "give a folder"


def zero_bytes(images):
    (images / "dog" / "new.png").write_bytes(b"")
    return "dog/new.png is empty (0 bytes)", "--on-error skip"


def cut_image(images):
    (images / "dog" / "new.png").write_bytes(png(0)[:-20])
    return "dog/new.png ends early", "--on-error skip"


def no_image(images):
    (images / "dog" / "new.png").write_bytes(b"<html>404</html>")
    return "dog/new.png is not an image", "--on-error skip"


def flipped_bit(images):
    data = bytearray(png(0))
    data[45] ^= 1
    (images / "dog" / "new.png").write_bytes(data)
    return "dog/new.png is damaged", "--on-error skip"


def newline_in_name(images):
    (images / "dog" / "new\nline.png").write_bytes(png(0))
    return r"dog/new\nline.png", "line break", "rename it"


def newline_in_class(images):
    (images / "new\nline").mkdir()
    (images / "new\nline" / "a.png").write_bytes(png(0))
    return r"new\nline", "line break", "rename it"


def name_not_utf8(images):
    Path(os.fsdecode(os.fsencode(images) + b"/dog/new\xff.png")).write_bytes(png(0))
    return r"dog/new\udcff.png", "not UTF-8", "rename it"


def class_not_utf8(images):
    folder = Path(os.fsdecode(os.fsencode(images) + b"/new\xff"))
    folder.mkdir()
    (folder / "a.png").write_bytes(png(0))
    return r"new\udcff", "not UTF-8", "rename it"


def classes_by_case(images):
    (images / "Cat").mkdir()
    (images / "Cat" / "new.png").write_bytes(png(0))
    return "class folders Cat and cat", "differ only by case", "rename one"


def broken_link(images):
    (images / "dog" / "new.png").symlink_to("nowhere.png")
    return "dog/new.png is a link to a file that is not there", "--on-error skip"


def link_loop(images):
    (images / "dog" / "new.png").symlink_to("new.png")
    return "dog/new.png", "Too many levels of symbolic links", "--on-error skip"


def same_field_twice(images):
    (images / "dog" / "new.png").write_bytes(png(0))
    (images / "dog" / "new.PNG").write_bytes(png(1))
    return "dog/new.PNG and ", "dog/new.png are the same field 'png'", "rename one"


SOURCES = [remove, empty, nothing_usable, empty_classes, a_file, zero_bytes, cut_image, no_image, flipped_bit]
SOURCES += [newline_in_name, newline_in_class, name_not_utf8, class_not_utf8, classes_by_case, broken_link, link_loop]
SOURCES += [same_field_twice]


@pytest.mark.parametrize("break_source", SOURCES, ids=lambda function: function.__name__)
def test_a_broken_source_is_said_and_leaves_nothing_behind(images, tmp_path, break_source):
    words = break_source(images)
    before = content(images)
    message = fails("pack", images, tmp_path / "out", kind="SourceError")
    for word in words:
        assert word in message
    assert content(images) == before
    assert not (tmp_path / "out").exists()


SKIPPABLE = [zero_bytes, cut_image, no_image, newline_in_name, newline_in_class, name_not_utf8, class_not_utf8]
SKIPPABLE += [broken_link, link_loop, same_field_twice]


def test_what_can_be_passed_over_is_passed_over_counted_and_listed(images, tmp_path):
    for number, break_source in enumerate(SKIPPABLE):
        break_source(images)
        for path in (images / "dog").glob("new.*"):
            path.rename(path.with_stem(f"new{number}"))  # so that the next one does not replace it
    (images / "dog" / f"new{SKIPPABLE.index(link_loop)}.png").unlink()
    link_loop(images)
    result = headrace("pack", images, tmp_path / "out", "--on-error", "skip", "--json")
    assert result.returncode == 0, result
    value = json.loads(result.stdout)
    assert (value["samples"], value["skipped"]) == (NUM_IMAGES, len(SKIPPABLE))
    assert f"{len(SKIPPABLE)} broken samples were skipped: see" in result.stderr
    lines = (tmp_path / "out" / "headrace.skipped.jsonl").read_bytes().splitlines()
    assert len(lines) == len(SKIPPABLE)
    assert all(set(json.loads(line)) == {"key", "reason"} for line in lines)
    assert is_whole(tmp_path / "out")


@pytest.mark.parametrize("break_source", [remove, zero_bytes, classes_by_case], ids=lambda function: function.__name__)
def test_a_broken_source_does_no_harm_to_the_dataset_at_the_target(images, packed, break_source):
    before = content(packed)
    break_source(images)
    fails("pack", images, packed)
    assert content(packed) == before
    assert is_whole(packed)


@pytest.mark.parametrize(
    ("verb", "code"),
    [(["pack", "images", "out"], 1), (["inspect", "images"], 1), (["pack", "images"], 2), (["unpack"], 2)],
)
def test_without_json_the_same_line_is_all_that_is_said(images, tmp_path, verb, code):
    zero_bytes(images)
    plain, with_json = (headrace(*verb, *more, cwd=tmp_path) for more in ([], ["--json"]))
    assert plain.stdout == ""
    assert one_line(plain, code) == one_line(with_json, code)


# Targets.


def test_a_target_that_holds_a_dataset_is_kept_unless_overwrite_is_given(images, packed):
    before = content(packed)
    message = fails("pack", images, packed, "--seed", "7", kind="TargetError")
    assert f"{packed} already holds a dataset of another source or options" in message
    assert "--overwrite" in message
    assert content(packed) == before
    assert is_whole(packed)
    assert headrace("pack", images, packed, "--seed", "7", "--overwrite").returncode == 0
    assert content(packed) != before
    assert is_whole(packed)


def test_a_target_that_holds_other_things_is_never_touched(images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("precious")
    for more in ([], ["--overwrite"]):
        message = fails("pack", images, tmp_path / "out", *more, kind="TargetError")
        assert f"the target {tmp_path / 'out'} holds other things (thesis.doc)" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.doc"]


def test_a_target_that_is_a_file_or_lies_in_its_source_is_refused(images, tmp_path):
    (tmp_path / "file").write_text("x")
    before = content(images)
    assert "is a file" in fails("pack", images, tmp_path / "file", kind="TargetError")
    assert "Not a directory" in fails("pack", images, tmp_path / "file" / "out", kind="StorageError")
    for target in (images, images / "cat" / "out"):
        assert "lies inside the source" in fails("pack", images, target, kind="TargetError")
    assert content(images) == before


@pytest.mark.parametrize("split", [[], ["--split", "a=0.5,b=0.5"]], ids=["whole", "split"])
def test_a_full_disk_is_said_and_with_room_the_same_command_goes_on(tmp_path, small_disk, split):
    source = tmp_path / "bins"
    source.mkdir()
    for number in range(60):
        (source / f"{number:02d}.bin").write_bytes(bytes([number]) * 6000)
    before = content(source)
    command = ["pack", source, small_disk / "out", "--shard-size", "30kB", *split]
    message = fails(*command, kind="StorageError")
    assert str(small_disk / "out") in message
    assert "No space left on device" in message
    assert "make room and run the same again" in message
    assert content(source) == before
    parts = [small_disk / "out" / name for name in "ab"] if split else [small_disk / "out"]
    for part in parts:
        with pytest.raises(DatasetError):
            hr.open(part)
    assert "is not finished" in fails("inspect", parts[0], kind="DatasetError")
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert headrace(*command).returncode == 0
    assert sum(len(hr.open(part)) for part in parts) == 60
    assert all(is_whole(part) for part in parts)


@pytest.fixture
def obedient(tmp_path):
    """What is put before a command so that permissions hold for it: as root, who may read and write all, a drop."""
    prefix = OBEY if os.geteuid() == 0 else []
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("root cannot be kept from writing here: there is no setpriv")
    able = subprocess.run([*prefix, "mkdir", closed / "x"], capture_output=True, text=True, check=False)
    if "Permission denied" not in able.stderr:
        pytest.skip("root cannot be kept from writing here")
    yield prefix
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


def test_a_missing_write_permission_is_said(images, packed, tmp_path, obedient):
    packed.chmod(0o555)
    before = content(tmp_path)
    closed = tmp_path / "closed"
    refused = {closed: [closed], closed / "out": [closed], packed: [packed, "--overwrite", "--seed", "1"]}
    for target, (named, *more) in refused.items():
        message = fails("pack", images, target, *more, kind="StorageError", before=obedient)
        assert str(named) in message
        assert "Permission denied; change its permissions, or choose another place" in message
    assert content(tmp_path) == before
    assert is_whole(packed)


def test_a_missing_read_permission_is_said(images, packed, tmp_path, obedient):
    out = tmp_path / "out"
    (packed / "shard-000000.tar").chmod(0)
    message = fails("inspect", packed, "--show", "1", kind="StorageError", before=obedient)
    assert "shard-000000.tar: Permission denied" in message
    (images / "cat" / "00.png").chmod(0)
    assert "cat/00.png: Permission denied" in fails("pack", images, out, kind="SourceError", before=obedient)
    (images / "cat").chmod(0)
    assert "images/cat: Permission denied" in fails("pack", images, out, kind="StorageError", before=obedient)
    images.chmod(0)
    assert "Permission denied" in fails("pack", images / "cat", out, kind="StorageError", before=obedient)
    assert "Permission denied" in fails("inspect", images / "cat", kind="StorageError", before=obedient)
    assert not out.exists()


# Datasets. Each damages a packed one and says what must be named.


def cut_short(packed):
    path = packed / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-2000])
    return "shard-000001.tar is cut short", "restore it"


def cut_to_nothing(packed):
    (packed / "shard-000001.tar").write_bytes(b"")
    return "shard-000001.tar is cut short", "restore it"


def flip_a_byte(packed):
    data = bytearray((packed / "shard-000001.tar").read_bytes())
    data[600] ^= 0xFF
    (packed / "shard-000001.tar").write_bytes(data)
    key = hr.open(packed).piece(1).key(0)
    return "shard-000001.tar is damaged", f"sample {key} is damaged", "restore it"


def lose_a_shard(packed):
    (packed / "shard-000001.tar").unlink()
    return "shard-000001.tar is missing", "restore it"


def lose_an_index(packed):
    (packed / "shard-000001.tar.idx").unlink()
    return "shard-000001.tar.idx is missing", "restore it"


def garble_an_index(packed):
    data = bytearray((packed / "shard-000001.tar.idx").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (packed / "shard-000001.tar.idx").write_bytes(data)
    return "shard-000001.tar.idx is damaged", "restore it"


def swap_shards(packed):
    one, two = packed / "shard-000001.tar", packed / "shard-000000.tar"
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    return "shard-000000.tar", "shard-000001.tar", "restore it"


def append_junk(packed):
    with open(packed / "shard-000001.tar", "ab") as file:
        file.write(b"junk")
    return "shard-000001.tar has bytes too many", "restore it"


DAMAGES = [cut_short, cut_to_nothing, flip_a_byte, lose_a_shard, lose_an_index, garble_an_index, swap_shards]
DAMAGES += [append_junk]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda function: function.__name__)
def test_a_damaged_dataset_is_found_out_and_what_is_wrong_is_listed(packed, damage):
    words = damage(packed)
    before = content(packed)
    result = headrace("inspect", packed, "--verify", "--json")
    assert f"{packed} is damaged" in one_line(result, 1)
    value = json.loads(result.stdout)
    assert value["verified"] is False
    assert (value["samples"], value["format"]) == (NUM_IMAGES, "tar")
    errors = "\n".join(value["errors"])
    for word in words:
        assert word in errors
    assert content(packed) == before


def test_without_json_the_damage_is_listed_as_text(packed):
    words = flip_a_byte(packed)
    result = headrace("inspect", packed, "--verify")
    assert f"{packed} is damaged (2 errors): restore what they name" in one_line(result, 1)
    listed = result.stdout.partition("DAMAGED:")[2]
    assert all(word in listed for word in words)


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_shard, garble_an_index], ids=lambda function: function.__name__)
def test_a_damaged_sample_is_neither_shown_nor_packed(packed, tmp_path, damage):
    damage(packed)
    message = fails("inspect", packed, "--show", str(NUM_IMAGES), kind="DamagedError")
    assert "shard-00000" in message
    assert "shard-00000" in fails("pack", packed, tmp_path / "again", kind="DamagedError")
    assert not (tmp_path / "again").exists()


def set_version(packed, version):
    path = packed / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":%d' % version))


def test_a_manifest_of_a_future_version_is_refused_by_every_verb(images, packed, tmp_path):
    set_version(packed, 2)
    before = content(packed)
    for command in (["inspect", packed], ["pack", packed, tmp_path / "again"], ["pack", images, packed]):
        message = fails(*command, kind="ManifestError")
        assert f"{packed / 'headrace.json'} has version 2" in message
        assert "upgrade headrace" in message
    assert content(packed) == before
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"[1, 2]", "must be an object"),
        (b'{"version": 1}', "format must be there"),
    ],
)
def test_a_manifest_that_is_none_is_refused(packed, text, message):
    (packed / "headrace.json").write_bytes(text)
    found = fails("inspect", packed, kind="ManifestError")
    assert str(packed / "headrace.json") in found
    assert message in found


def test_what_is_no_dataset_is_said(images, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, words in {
        tmp_path / "nowhere": "nothing is there; check the path",
        tmp_path / "empty": "it is empty",
        images / "cat" / "00.png": "pack it first (headrace pack)",
    }.items():
        message = fails("inspect", place, kind="DatasetError")
        assert str(place) in message
        assert words in message


STREAM = """
import sys
import headrace as hr

for place in sys.argv[1:]:
    expected = {sample["__key__"]: bytes(sample["png"]) for sample in hr.open(sys.argv[1])}
    delivered = []
    try:
        with hr.Loader(hr.Stream(hr.open(place), shuffle=False), batch_size=1) as loader:
            for batch in loader:
                delivered += zip(batch["__key__"], map(bytes, batch["png"]))
    except hr.HeadraceError as err:
        print(type(err).__name__, err)
    else:
        print("all", len(delivered))
    assert all(expected[key] == data for key, data in delivered)
"""


def test_a_damaged_dataset_is_streamed_up_to_the_damage_and_never_wrong(packed, tmp_path):
    damages = [cut_to_nothing, flip_a_byte, lose_a_shard, garble_an_index]
    for damage in damages:
        shutil.copytree(packed, tmp_path / damage.__name__)
        damage(tmp_path / damage.__name__)
    places = [packed, *(tmp_path / damage.__name__ for damage in damages)]
    command = [sys.executable, "-c", STREAM, *map(str, places)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    whole, *others = result.stdout.splitlines()
    assert whole == f"all {NUM_IMAGES}"
    assert len(others) == len(damages)
    for line in others:
        assert line.startswith("DamagedError ")
        assert "shard-000001.tar" in line


# Usage.


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("pack", "IMAGES", "OUT", "--format", "zip"),
            "format must be one of tar, parquet, tfrecord, mds, tokens: got",
        ),
        (("pack", "IMAGES", "OUT", "--on-error", "ignore"), "--on-error must be raise or skip: got 'ignore'"),
        (("pack", "IMAGES", "OUT", "--shard-size", "lots"), "shard_size must be a number of bytes"),
        (("pack", "IMAGES", "OUT", "--split", "a=0.5,b=0.6"), "must add up to 1"),
        (("pack", "IMAGES", "OUT", "--seed", "x"), "--seed"),
        (("pack", "IMAGES", "OUT", "--transform", "gone.py:f"), "there is no file 'gone.py'"),
        (("pack", "IMAGES", "OUT", "--frobnicate"), "--frobnicate"),
        (("pack", "IMAGES"), "Missing argument 'target'"),
        (("pack", "IMAGES", "OUT", "more"), "(more)"),
        (("pack", "pipe:cat images", "OUT"), "a pipe: URL is not read"),
        (("inspect", "OUT", "--show", "-1"), "--show must be at least 0"),
        (("inspect", "OUT", "--show", "few"), "--show"),
        (("inspect", ""), "a path or URL that is not empty"),
        (("index", "OUT", "--dtype", "int7", "more"), "(more)"),
        (("unpack", "OUT"), "unpack"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_bad_usage_and_unknown_values_are_exit_code_2(images, tmp_path, args, words):
    places = {"IMAGES": str(images), "OUT": str(tmp_path / "out")}
    message = fails(*(places.get(arg, arg) for arg in args), code=2)
    assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", [["pack", "nowhere", "out"], ["inspect", "nowhere"]])
def test_debug_before_and_after_the_verb_shows_the_traceback_as_well(tmp_path, verb):
    for args in (["--debug", *verb], [*verb, "--debug"]):
        result = headrace(*args, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stdout == ""
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("headrace: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["pack", "--help"], ["inspect", "--help"]])
def test_help_and_version_import_no_torch(args):
    command = [sys.executable, "-X", "importtime", "-m", "headrace.cli.main", *args]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pyarrow", "cv2", "PIL", "rich"}
    assert result.stdout


def test_packing_and_inspecting_import_no_torch_either(images, tmp_path):
    for verb in (["pack", images, tmp_path / "out"], ["inspect", tmp_path / "out", "--verify"]):
        command = [sys.executable, "-X", "importtime", "-m", "headrace.cli.main", *verb]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not any(line.rpartition("|")[2].strip() == "torch" for line in result.stderr.splitlines())
