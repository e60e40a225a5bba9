"""Video: the frames that are asked for, the same cut in each, shapes known beforehand, faults named."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import OptionError, TransformError
from headrace.transform import (
    ArraySpec,
    DecodeVideo,
    Encoded,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    apply,
    sample_rng,
)

FFMPEG = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(FFMPEG is None, reason="needs FFmpeg (apt-get install ffmpeg)")

NUM_FRAMES, HEIGHT, WIDTH = 30, 48, 64
OPTIONS = [  # steps are made in the tests, since making one needs FFmpeg
    {"num_frames": 4, "cut": RandomResizedCrop(24)},
    {"num_frames": 3, "step": 5, "clip": "first", "cut": Resize((20, 30))},
    {"num_frames": 2, "clip": "middle", "cut": Resize(24)},
    {"num_frames": 2},
]


def video(num_frames=NUM_FRAMES, kind="mp4", codec="libx264", folder=None):
    """A video whose frame number n has the level 8 n, and on its right half 8 n + 4."""
    frames = np.zeros((num_frames, HEIGHT, WIDTH, 3), np.uint8)
    frames += (8 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    frames[:, :, WIDTH // 2 :] += 4
    path = folder / f"video.{kind}"
    source = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r 10 -i -"
    coded = f"-c:v {codec} -pix_fmt yuv420p -g 10 -b:v 2M"
    command = [FFMPEG, "-v", "error", "-y", *source.split(), *coded.split(), str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)
    return path.read_bytes()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return video(folder=tmp_path_factory.mktemp("video"))


def run(step, data, position=0, field="mp4"):
    return apply([step], {"__key__": "k", field: data}, lambda: sample_rng(1, 2, position))[field]


def numbers_of(clip):
    """Which frames a clip has, from their levels."""
    return [round(float(frame[:, : frame.shape[1] // 2].mean()) / 8) for frame in clip]


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_frames_are_those_of_the_video(tmp_path, kind, codec):
    data = video(kind=kind, codec=codec, folder=tmp_path)
    made = run(DecodeVideo(5, step=3, clip="first"), memoryview(data), field=kind)
    assert made.dtype == np.uint8
    assert made.shape == (5, HEIGHT, WIDTH, 3)
    assert numbers_of(made) == [0, 3, 6, 9, 12]
    assert abs(made[4, :, WIDTH // 2 + 4 :].astype(float).mean() - 100) < 3


@pytest.mark.parametrize(
    ("num_frames", "step", "clip", "expected"),
    [
        (3, 1, "middle", [13, 14, 15]),
        (2, 29, "random", [0, 29]),
        (4, 10, "random", [0, 10, 20, 29]),
        (3, 40, "middle", [0, 29, 29]),
    ],
)
def test_the_part_lies_in_the_video_and_the_last_frame_is_repeated(stored, num_frames, step, clip, expected):
    assert numbers_of(run(DecodeVideo(num_frames, step, clip), stored)) == expected


def test_random_parts_are_the_positions_own_and_reach_both_ends(stored):
    step = DecodeVideo(2, step=25)
    firsts = [numbers_of(run(step, stored, position))[0] for position in range(60)]
    assert firsts == [numbers_of(run(step, stored, position))[0] for position in range(60)]
    assert set(firsts) == set(range(5))


def test_every_frame_has_the_same_cut(stored):
    whole = run(DecodeVideo(4, clip="first"), stored)
    crop = RandomResizedCrop(16)
    for position in range(10):
        cut = crop.cut(HEIGHT, WIDTH, sample_rng(1, 2, position))
        made = run(DecodeVideo(4, clip="first", cut=crop), stored, position)
        assert np.array_equal(made, np.stack([cut.of(frame) for frame in whole]))
    resized = run(DecodeVideo(4, clip="first", cut=Resize((48, 64))), stored)
    assert np.array_equal(resized, whole)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_output_is_as_declared(stored, options):
    step = DecodeVideo(**options)
    made = run(step, stored)
    declared = step.output_fields({"mp4": Encoded(), "cls": ArraySpec("int64", ())})
    assert declared["cls"] == ArraySpec("int64", ())
    assert declared.get("mp4") in (None, ArraySpec("uint8", made.shape))
    assert ("mp4" in declared) == (step.cut is not None and step.cut != Resize(24))


def test_what_does_not_fit_is_named(stored):
    faults = [
        (b"", "is no video that FFmpeg reads"),
        (b"nothing" * 99, "is no video that FFmpeg reads: Failed to open input buffer"),
        (stored[: len(stored) // 2], "is no video that FFmpeg reads"),
        (np.zeros(3), "must be video as it is stored: got ndarray"),
    ]
    for data, message in faults:
        with pytest.raises(TransformError, match=f"DecodeVideo failed: field 'mp4' {message}") as caught:
            run(DecodeVideo(2), data)
        assert "\n" not in str(caught.value)
        assert ".cpp" not in str(caught.value)
    with pytest.raises(TransformError, match=r"there is no video, a field that ends in avi, .*: the sample has jpg"):
        run(DecodeVideo(2), stored, field="jpg")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "tone.mp4"
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "sine=duration=1", str(path)]
    subprocess.run(command, check=True)
    with pytest.raises(TransformError, match="is no video that FFmpeg reads"):
        run(DecodeVideo(2), path.read_bytes())


@pytest.mark.parametrize(
    "make",
    [
        lambda: DecodeVideo(0),
        lambda: DecodeVideo(4, step=0),
        lambda: DecodeVideo(2.0),
        lambda: DecodeVideo(4, clip="last"),
        lambda: DecodeVideo(4, cut=RandomHorizontalFlip()),
    ],
)
def test_impossible_options_are_refused_when_made(make):
    with pytest.raises(OptionError):
        make()


def test_without_torchcodec_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(OptionError, match=r"pip install 'headrace\[video\]'"):
        DecodeVideo(2)


def test_a_loader_gives_the_same_tensors_in_threads_and_processes(stored, tmp_path):
    hr.pack(({"__key__": f"{i:02d}", "mp4": stored, "cls": i} for i in range(24)), tmp_path / "packed")
    stream = hr.Stream(hr.open(tmp_path / "packed"), seed=3).decode()
    stream = stream.map(hr.transform.DecodeVideo(4, step=2, cut=RandomResizedCrop(16)))

    def read(**options):
        with hr.Loader(stream, batch_size=8, **options) as loader:
            return [batch["mp4"].clone() for batch in loader]

    expected = read(threads=1)
    assert [batch.shape for batch in expected] == [(8, 4, 16, 16, 3)] * 3
    assert len({clip.numpy().tobytes() for batch in expected for clip in batch}) > 12
    for options in ({"threads": 4}, {"processes": 2}):
        assert all(torch.equal(*pair) for pair in zip(read(**options), expected, strict=True))
