"""Steps on whole batches: what they compute, that they belong to the order, that the device gives what the CPU gives.

Tests marked `gpu` run where there is a CUDA device.
"""

import gc
import pickle

import numpy as np
import pytest
import simplejpeg
import torch

import headrace as hr
from headrace.errors import OptionError, TransformError
from headrace.ondevice import CutMix, DecodeJpeg, Mixup, Normalize, OneOf
from waiting import wait_for

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CLASSES = 10


def image(i, height=12, width=16):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    target = tmp_path_factory.mktemp("ondevice") / "packed"
    hr.pack(({"__key__": f"{i:04d}", "npy": image(i), "cls": i % NUM_CLASSES} for i in range(200)), target)
    return hr.open(target)


@pytest.fixture
def stream(packed):
    return hr.Stream(packed, seed=3, epochs=2).decode()


def pixels(rows=8):
    return torch.from_numpy(np.stack([image(i) for i in range(rows)]))


def batch_of(images):
    return {"__key__": [str(i) for i in range(len(images))], "image": images, "cls": torch.arange(len(images))}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k].cpu(), b[k].cpu()) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


# What the steps compute.


def test_normalize_gives_what_the_step_on_samples_gives_channels_last():
    made = Normalize(MEAN, STD)(batch_of(pixels()))["image"]
    expected = np.stack([hr.transform.Normalize(MEAN, STD)({"image": image(i)})["image"] for i in range(8)])
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_normalize_rounds_once(dtype):
    exact = Normalize(MEAN, STD)(batch_of(pixels()))["image"]
    made = Normalize(MEAN, STD, dtype=dtype)(batch_of(pixels()))["image"]
    assert torch.equal(made, exact.to(getattr(torch, dtype)))


def test_mixup_averages_images_and_labels_by_the_same_share():
    images = torch.rand(8, 3, 4, 5)
    made = Mixup(0.4, NUM_CLASSES)(batch_of(images), np.random.default_rng(1))
    assert made["cls"].shape == (8, NUM_CLASSES)
    torch.testing.assert_close(made["cls"].sum(1), torch.ones(8))
    # Sample i has class i: so row i of the labels says how much of which image is in image i.
    torch.testing.assert_close(made["image"], torch.einsum("ij,jchw->ichw", made["cls"][:, :8], images))
    assert not torch.equal(made["image"], images)


@pytest.mark.parametrize("form", ["pixels", "channels last", "channels first"])
def test_cutmix_takes_whole_pixels_and_counts_them(form):
    images = pixels() if form == "pixels" else Normalize(MEAN, STD)(batch_of(pixels()))["image"]
    images = images.contiguous() if form == "channels first" else images
    before = images.clone()
    mixed = 0
    for seed in range(20):
        made = CutMix(1.0, NUM_CLASSES)(batch_of(images), np.random.default_rng(seed))
        torch.testing.assert_close(made["cls"].sum(1), torch.ones(8))
        channels = 3 if form == "pixels" else 1
        for i in range(8):
            own = (made["image"][i] == images[i]).all(channels - 1 if channels == 1 else 2)
            kept = own.float().mean().item()  # pixels of noise: those of two images are never all alike
            assert made["cls"][i, i].item() == pytest.approx(kept, abs=1e-6)
            mixed += kept < 1
            for j in (made["cls"][i] > 0).nonzero().flatten().tolist():
                own |= (made["image"][i] == images[j]).all(channels - 1 if channels == 1 else 2)
            assert own.all()  # every pixel is of an image that the label names
    assert mixed
    assert torch.equal(images, before)


def test_soft_targets_may_be_mixed_again():
    images = torch.rand(8, 3, 4, 5)
    once = Mixup(1.0, NUM_CLASSES)(batch_of(images), np.random.default_rng(1))
    twice = CutMix(1.0, NUM_CLASSES)(once, np.random.default_rng(2))
    torch.testing.assert_close(twice["cls"].sum(1), torch.ones(8))


def test_one_of_draws_by_weight():
    images = torch.rand(8, 3, 4, 5)
    mixup, cutmix = Mixup(1.0, NUM_CLASSES), CutMix(1.0, NUM_CLASSES)
    step, blended = OneOf((mixup, cutmix), weights=(3, 1)), 0
    for seed in range(400):
        made = step(batch_of(images), np.random.default_rng(seed))["image"]
        blended += not torch.isin(made, images).all().item()
    assert 250 < blended < 350  # 300 expected; one deviation is 9


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Normalize(MEAN, (0, 1, 1)), "std must be above 0"),
        (lambda: Normalize(MEAN, STD, dtype="int8"), "dtype is one of float32, bfloat16, float16: got 'int8'"),
        (lambda: Mixup(0, 10), "alpha, of the Beta distribution, is a number above 0: got 0"),
        (lambda: CutMix(1.0, 0), "num_classes is a whole number of at least 1: got 0"),
        (lambda: OneOf(()), "OneOf takes steps that mix"),
        (lambda: OneOf((Mixup(1.0, 10),), weights=(1, 2)), "one for each of 1 steps"),
    ],
)
def test_options_that_cannot_work_are_refused(make, told):
    with pytest.raises(OptionError, match=told):
        make()


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (Normalize((0.5, 0.5), (1, 1)), "the images have 3 channels, but mean has 2 values"),
        (Normalize(MEAN, STD, field="cls"), r"'cls' must be a uint8 tensor .*: got int64 of \(10,\)"),
        (Normalize(MEAN, STD, field="jpg"), "no such field among cls, npy"),
        (Mixup(1.0, NUM_CLASSES), "as Normalize makes it: got cls"),
        (CutMix(1.0, 5), "labels are from 0 to num_classes - 1 = 4: 'cls' has"),
        (CutMix(1.0, NUM_CLASSES, label="label"), "no field 'label' for the labels: the batch has cls, npy"),
        (lambda batch: 1 / 0, "<lambda> .*failed: ZeroDivisionError: division by zero"),
        (lambda batch: None, "must return a dict of fields: got NoneType"),
    ],
)
def test_what_a_step_cannot_take_is_told_in_one_line(stream, step, told):
    with hr.Loader(stream, batch_size=10, on_device=(step,)) as loader:
        for _ in range(2):  # and again: the batch that is due has not changed
            with pytest.raises(TransformError, match=told) as caught:
                next(iter(loader))
            assert "step 0 of epoch 0: the on_device step" in str(caught.value)
            assert "\n" not in str(caught.value)


def test_steps_can_be_sent_and_compared():
    for step in (Normalize(MEAN, STD), Mixup(0.2, 10), OneOf((Mixup(0.2, 10), CutMix(1.0, 10)))):
        assert pickle.loads(pickle.dumps(step)) == step


# In a loader.

MIXING = (Normalize(MEAN, STD), OneOf((Mixup(0.4, NUM_CLASSES), CutMix(1.0, NUM_CLASSES))))


@pytest.mark.parametrize(
    "steps",
    [Normalize(MEAN, STD), "Normalize", (1,), (lambda: None,), (lambda batch, rng, more: batch,), None],
)
def test_what_is_no_step_is_refused(stream, steps):
    with pytest.raises(OptionError, match=r"step\(batch\)|fn\(batch\)"):
        hr.Loader(stream, batch_size=10, on_device=steps)


def test_randomness_belongs_to_the_place_in_the_order(stream):
    """Of each batch of two epochs, whether it comes in one go, again, or after resuming there."""
    with hr.Loader(stream, batch_size=50, on_device=MIXING) as loader:
        batches = list(loader)
    with hr.Loader(stream, batch_size=50, on_device=MIXING, threads=1, prefetch=1) as loader:
        assert all(equal(a, b) for a, b in zip(loader, batches, strict=True))
    assert not torch.equal(batches[0]["cls"].sort()[0], batches[4]["cls"].sort()[0])
    for number in range(1, len(batches)):
        with hr.Loader(stream, batch_size=50, on_device=MIXING) as loader:
            running = iter(loader)
            for _ in range(number):
                next(running)
            state = loader.state_dict()
        with hr.Loader(stream, batch_size=50, on_device=MIXING) as resumed:
            resumed.load_state_dict(state)
            assert equal(next(iter(resumed)), batches[number])


def test_ranks_draw_apart(stream):
    def drawn(rank):
        shown = []
        step = lambda batch, rng: shown.append(rng.random()) or batch  # noqa: E731
        with hr.Loader(stream, global_batch_size=40, rank=rank, world_size=2, on_device=(step,)) as loader:
            list(loader)
        return shown

    numbers = drawn(0) + drawn(1)
    assert len(set(numbers)) == len(numbers) == 20


def test_the_state_does_not_know_of_steps(stream):
    with hr.Loader(stream, batch_size=50, on_device=MIXING) as loader, hr.Loader(stream, batch_size=50) as plain:
        next(iter(loader))
        plain.load_state_dict(loader.state_dict())
        assert plain.state_dict() == loader.state_dict()


def test_an_empty_batch_passes(stream):
    nothing = stream.filter(lambda sample: False)
    with hr.Loader(nothing, batch_size=100, on_device=MIXING) as loader:
        assert [batch["__key__"] for batch in loader] == [[]] * 4
    collated = {"batch_size": 100, "collate": lambda samples: {"n": len(samples)}, "on_device": MIXING}
    with hr.Loader(nothing, **collated) as loader:
        assert [batch["__key__"] for batch in loader] == [[]] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_decoding_on_the_device_is_refused_without_one():
    with pytest.raises(OptionError, match=r"torchvision, which is missing|needs a CUDA device and found none"):
        DecodeJpeg(224)


# On a device.


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["slots", "grown slots"])
def test_pinned_batches_arrive_right_whether_held_or_dropped(packed, memory):
    """Also where later batches are larger, so that a slot is mapped and pinned anew while the old map lives."""

    def widen(sample):
        number = int(sample["__key__"])
        sides = 1 + (number // 20 if memory == "grown slots" else 0)
        return {"row": np.full((sides * 40_000,), number, np.int32)}

    stream = hr.Stream(packed, shuffle=False, epochs=3).decode().map(widen, shapes={"row": None})
    with hr.Loader(stream, batch_size=4, device="cuda") as loader:
        held = []
        for number, batch in enumerate(loader):
            for key, row in zip(batch["__key__"], batch["row"], strict=True):
                assert row.is_cuda
                assert (row == int(key)).all()
            if number % 7 == 0:
                held.append(batch)
        for batch in held:
            assert all((row == int(key)).all() for key, row in zip(batch["__key__"], batch["row"], strict=True))


@pytest.mark.gpu
def test_all_batches_held_at_once_are_right(stream):
    with hr.Loader(stream, batch_size=4, device="cuda") as there, hr.Loader(stream, batch_size=4) as here:
        assert all(equal(a, b) for a, b in zip(list(there), list(here), strict=True))


@pytest.mark.gpu
def test_the_device_gives_what_the_cpu_gives(stream):
    """While the default stream is kept busy, so that a batch that is used too early, or overwritten, shows."""
    busy = torch.rand(2048, 2048, device="cuda")
    with (
        hr.Loader(stream, batch_size=20, device="cuda", on_device=MIXING) as there,
        hr.Loader(stream, batch_size=20, on_device=MIXING) as here,
    ):
        sums = []
        for batch in there:
            for _ in range(20):
                busy = busy @ busy / 1024
            sums.append((batch["npy"].double().sum((1, 2, 3)), batch["cls"].clone(), batch["__key__"]))
            assert batch["npy"].is_contiguous(memory_format=torch.channels_last)
            del batch
        for (total, labels, keys), batch in zip(sums, here, strict=True):
            torch.testing.assert_close(total.cpu(), batch["npy"].double().sum((1, 2, 3)), atol=1e-2, rtol=1e-4)
            torch.testing.assert_close(labels.cpu(), batch["cls"])
            assert keys == batch["__key__"]


@pytest.mark.gpu
def test_slots_come_back(stream):
    with hr.Loader(stream, batch_size=4, device="cuda", on_device=MIXING) as loader:
        for _ in loader:
            torch.cuda.synchronize()
            assert loader._client._slots.num_held <= 4
        next(iter(loader))
        loader._client.start(0, 0)
        gc.collect()
        wait_for(lambda: loader._client._slots.num_held == 0, "the return of every slot")


@pytest.mark.gpu
def test_a_failing_step_is_told_after_the_batches_before_it(stream):
    calls = []

    def fail_at_four(batch):
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("the fifth")
        return batch

    came = []
    with hr.Loader(stream, batch_size=10, device="cuda", on_device=(fail_at_four,)) as loader:
        batches = iter(loader)
        came += [next(batches)["__key__"] for _ in range(4)]
        with pytest.raises(TransformError, match=r"step 4 of epoch 0: .*fail_at_four .*failed: ValueError: the fifth"):
            next(batches)
        came += [batch["__key__"] for batch in loader]  # left early: the next epoch
    with hr.Loader(stream, batch_size=10) as plain:
        expected = [batch["__key__"] for batch in plain]
    assert came[:24] == expected[:4] + expected[20:]


@pytest.mark.gpu
def test_labels_out_of_range_leave_the_device_in_order(stream):
    loader = hr.Loader(stream, batch_size=10, device="cuda", on_device=(CutMix(1.0, 5),))
    with loader, pytest.raises(TransformError, match="labels are from 0 to"):
        next(iter(loader))
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth JPEGs of 64 x 64, since decoders differ most on noise."""
    target = tmp_path_factory.mktemp("photos") / "packed"

    def samples():
        y, x = np.mgrid[0:64, 0:64]
        for i in range(32):
            planes = [np.sin(x / (5 + i % 7)) * 100 + 128, np.cos(y / (6 + i % 5)) * 100 + 128, x * 2 + i]
            data = simplejpeg.encode_jpeg(np.stack(planes, 2).clip(0, 255).astype(np.uint8), 95, "RGB", "420")
            yield {"__key__": f"{i:02d}", "jpg": data}

    hr.pack(samples(), target)
    return hr.Stream(hr.open(target), seed=1)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 32])
def test_jpegs_decoded_on_the_device_are_those_of_the_host(photos, size):
    pytest.importorskip("torchvision")
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    step = DecodeJpeg(size, **whole, flip=0.0)
    host = photos.decode().map(hr.transform.RandomResizedCrop(size, **whole))
    with hr.Loader(photos, batch_size=8, device="cuda", on_device=(step,)) as there, hr.Loader(host, batch_size=8) as h:
        for made, expected in zip(there, h, strict=True):
            assert made["jpg"].shape == expected["jpg"].shape == (8, size, size, 3)
            assert made["jpg"].dtype == torch.uint8
            assert (made["jpg"].cpu().float() - expected["jpg"].float()).abs().mean() < 3


@pytest.mark.gpu
def test_random_crops_on_the_device_belong_to_the_order(photos):
    pytest.importorskip("torchvision")
    batches = []
    for _ in range(2):
        with hr.Loader(photos, batch_size=8, device="cuda", on_device=(DecodeJpeg((48, 40)),)) as loader:
            batches.append([batch["jpg"].cpu() for batch in loader])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
    assert batches[0][0].shape == (8, 48, 40, 3)


@pytest.mark.gpu
def test_a_broken_jpeg_is_named(tmp_path):
    pytest.importorskip("torchvision")
    good = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8), 90, "RGB")
    samples = [{"__key__": f"{i}", "bin": good if i != 2 else b"no image at all"} for i in range(4)]
    hr.pack(samples, tmp_path / "packed")
    stored = hr.Stream(hr.open(tmp_path / "packed"))
    loader = hr.Loader(stored, batch_size=4, device="cuda", on_device=(DecodeJpeg(8, field="bin"),))
    with loader, pytest.raises(TransformError, match="sample '2' cannot be decoded by nvJPEG"):
        next(iter(loader))


@pytest.mark.gpu
def test_decoding_on_the_device_is_refused_in_a_loader_on_the_cpu(photos):
    pytest.importorskip("torchvision")
    with pytest.raises(OptionError, match=r'DecodeJpeg works on a CUDA device: give the loader device="cuda"'):
        next(iter(hr.Loader(photos, batch_size=8, on_device=(DecodeJpeg(8),))))
