"""Audio: what libsndfile reads, the part that is asked for, shapes known beforehand, faults named."""

import io
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.errors import OptionError, TransformError
from headrace.transform import ArraySpec, DecodeAudio, Encoded, Ragged, apply, sample_rng

RATE = 8000
LENGTH = 2 * RATE
STEPS = [
    DecodeAudio(RATE),
    DecodeAudio(RATE, mono=True),
    DecodeAudio(RATE, length_sec=0.5),
    DecodeAudio(RATE, length_sec=3.0, clip="middle", mono=True),
]


def ramp(length=LENGTH, channels=2):
    """Audio whose first channel tells where a value came from; the second is its negative."""
    return (np.arange(length) / 32768)[:, None] * [1, -1][:channels]


def encoded(values, kind="WAV", rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=kind)
    return file.getvalue()


def run(step, data, position=0, field="wav"):
    return apply([step], {"__key__": "k", field: data}, lambda: sample_rng(1, 2, position))[field]


def start_of(clip):
    """Where in `ramp` a clip begins."""
    return round(float(clip[0, 0]) * 32768)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF"])
def test_values_are_those_that_were_stored_channels_first(kind):
    made = run(DecodeAudio(RATE), encoded(ramp(), kind), field=kind.lower())
    assert made.dtype == np.float32
    assert np.array_equal(made, ramp().T.astype(np.float32))


@pytest.mark.parametrize("kind", ["OGG", "MP3"])
def test_lossy_audio_is_near_what_was_stored(kind):
    tone = 0.5 * np.sin(np.arange(LENGTH) / RATE * 2 * np.pi * 440)[:, None]
    made = run(DecodeAudio(RATE), encoded(tone, kind), field=kind.lower())
    assert made.shape == (1, LENGTH)
    assert np.corrcoef(made[0, 2000:-2000], tone[2000:-2000, 0])[0, 1] > 0.95 or kind == "MP3"  # MP3 shifts the phase
    assert abs(np.sqrt((made**2).mean()) - np.sqrt((tone**2).mean())) < 0.02


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_output_is_as_declared(step):
    made = run(step, encoded(ramp()))
    declared = step.output_fields({"wav": Encoded(), "cls": ArraySpec("int64", ())})
    assert declared["cls"] == ArraySpec("int64", ())
    spec = declared.get("wav")
    assert spec is None or spec.dtype == made.dtype.name
    assert isinstance(spec, Ragged) or spec in (None, ArraySpec("float32", made.shape))


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["random", "first", "middle"]), st.integers(0, 20))
def test_a_clip_lies_in_the_recording_and_is_filled_up_with_silence(stored, wanted, clip, position):
    step = DecodeAudio(RATE, length_sec=wanted / RATE, clip=clip)
    values = ramp(stored)
    made = run(step, encoded(values), position)
    taken, start = min(stored, wanted), start_of(made)
    assert made.shape == (2, wanted)
    assert np.array_equal(made[:, :taken], values[start : start + taken].T.astype(np.float32))
    assert not made[:, taken:].any()
    expected = {"first": 0, "middle": (stored - taken) // 2}
    assert start == expected.get(clip, start)


def test_random_clips_are_the_positions_own_and_reach_both_ends():
    step = DecodeAudio(RATE, length_sec=0.01)
    data = encoded(ramp(100))
    starts = [start_of(run(step, data, position)) for position in range(400)]
    assert starts == [start_of(run(step, data, position)) for position in range(400)]
    assert set(starts) == set(range(21))


def test_mono_is_the_mean_of_the_channels():
    values = np.stack([np.full(100, 0.5), np.full(100, 0.25)], 1)
    assert np.array_equal(run(DecodeAudio(RATE, mono=True), encoded(values)), np.full((1, 100), 0.375, np.float32))


def half(data):
    return data[: len(data) // 2]


def forged(frames=2**36 - 1):
    """A FLAC whose header claims so many values."""
    data = bytearray(encoded(ramp(), "FLAC"))
    count = int.from_bytes(data[21:26], "big") & 0xF0_0000_0000 | frames
    data[21:26] = count.to_bytes(5, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("step", "data", "message"),
    [
        (DecodeAudio(RATE), b"", "is no audio that libsndfile reads"),
        (DecodeAudio(RATE), b"nothing" * 99, "is no audio that libsndfile reads: Format not recognised"),
        (DecodeAudio(RATE), half(encoded(ramp(), "FLAC")), "field 'wav' is no audio that libsndfile reads"),
        (DecodeAudio(RATE), half(encoded(ramp(channels=1), "MP3")), r"field 'wav' ends early: [\d,]+ of 16,000 values"),
        (DecodeAudio(RATE), encoded(ramp(), rate=16000), "has 16,000 values a second, not 8,000: resample it"),
        (DecodeAudio(RATE), forged(), r"68,719,476,735 x 2 values.*take a part by length_sec="),
        (DecodeAudio(RATE, length_sec=1.0), forged(), "is no audio that libsndfile reads"),
        (DecodeAudio(RATE), np.zeros(3), "must be audio as it is stored: got ndarray"),
        (DecodeAudio(RATE, field="mp3"), b"", "there is no field 'mp3': the sample has wav"),
    ],
)
def test_what_does_not_fit_is_named(step, data, message):
    with pytest.raises(TransformError, match=f"DecodeAudio failed: .*{message}") as caught:
        run(step, data)
    assert "\n" not in str(caught.value)


def test_several_recordings_need_a_name_and_none_is_said():
    sample = {"__key__": "k", "a.wav": encoded(ramp()), "b.flac": encoded(ramp(), "FLAC"), "cls": 3}
    with pytest.raises(TransformError, match=r"several fields of audio \(a\.wav, b\.flac\): say which with field="):
        apply([DecodeAudio(RATE)], sample, None)
    out = apply([DecodeAudio(RATE, field="b.flac")], sample, None)
    assert out["b.flac"].shape == (2, LENGTH)
    assert out["a.wav"] is sample["a.wav"]
    with pytest.raises(TransformError, match=r"there is no audio, a field that ends in aif, .*: the sample has txt"):
        apply([DecodeAudio(RATE)], {"__key__": "k", "txt": "a"}, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DecodeAudio(0),
        lambda: DecodeAudio(8000.0),
        lambda: DecodeAudio(RATE, length_sec=0),
        lambda: DecodeAudio(RATE, length_sec=1e9),
        lambda: DecodeAudio(RATE, clip="last"),
    ],
)
def test_impossible_options_are_refused_when_made(make):
    with pytest.raises(OptionError):
        make()


def test_without_soundfile_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(OptionError, match=r"pip install 'headrace\[audio\]'"):
        DecodeAudio(RATE)


@pytest.mark.parametrize("mono", [True, False])
def test_a_loader_gives_the_same_tensors_in_threads_and_processes(tmp_path, mono):
    hr.pack(
        ({"__key__": f"{i:02d}", "flac": encoded(ramp(), "FLAC"), "cls": i} for i in range(24)), tmp_path / "packed"
    )
    stream = hr.Stream(hr.open(tmp_path / "packed"), seed=3).decode()
    stream = stream.map(hr.transform.DecodeAudio(RATE, length_sec=0.5, mono=mono))

    def read(**options):
        with hr.Loader(stream, batch_size=8, **options) as loader:
            return [batch["flac"].clone() for batch in loader]

    expected = read(threads=1)
    assert [batch.shape for batch in expected] == [(8, 1 if mono else 2, RATE // 2)] * 3
    for options in ({"threads": 4}, {"processes": 2}):
        assert all(torch.equal(*pair) for pair in zip(read(**options), expected, strict=True))
