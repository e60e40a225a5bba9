"""torchvision's and Albumentations' transforms as steps: exact in any thread, and as the library makes them."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.errors import OptionError, TransformError
from headrace.transform import Albumentations, ArraySpec, Torchvision, apply, as_op, sample_rng
from torchvision_here import transforms

POSITIONS = range(60)


def image(height=40, width=60, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def run(step, pixels, position=0, **fields):
    return apply([step], {"__key__": "k", "jpg": pixels, **fields}, lambda: sample_rng(1, 2, position))


def results(step, pixels, threads=1):
    """What each position's sample becomes, as bytes."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda position: run(step, pixels, position)["jpg"].tobytes(), POSITIONS))


def drawn(tensor):
    """An image of what the global generators of torch and `random` say, drawn one by one."""
    levels = [torch.randint(256, (1,)).item() for _ in range(50)] + [random.randrange(256) for _ in range(50)]
    return torch.tensor(levels, dtype=torch.uint8).expand(3, 10, 100)


# --- torchvision


def test_what_a_function_draws_from_global_generators_belongs_to_the_sample_in_any_thread():
    alone = results(Torchvision(drawn), image())
    assert len(set(alone)) == len(POSITIONS)
    assert results(Torchvision(drawn), image(), threads=8) == alone


@pytest.mark.parametrize("fails", [False, True])
def test_the_generators_of_the_process_are_put_back(fails):
    def transform(tensor):
        drawn(tensor)
        if fails:
            raise ValueError("no")
        return tensor

    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    if fails:
        with pytest.raises(TransformError, match="Torchvision failed: ValueError: no"):
            run(Torchvision(transform), image())
    else:
        run(Torchvision(transform), image())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pil", [False, True])
def test_an_image_goes_through_and_comes_back_as_it_was(channels, pil):
    seen = []
    pixels = image(channels=channels)
    pixels.setflags(write=False)
    assert np.array_equal(run(Torchvision(lambda given: seen.append(given) or given, pil=pil), pixels)["jpg"], pixels)
    if pil:
        assert seen[0].size == (60, 40)
        assert seen[0].mode == {1: "L", 3: "RGB"}[channels]
    else:
        assert seen[0].shape == (channels, 40, 60)
        assert seen[0].dtype == torch.uint8


def test_a_function_that_writes_into_its_image_leaves_the_stored_one():
    pixels = image()
    pixels.setflags(write=False)
    before = pixels.copy()
    assert (run(Torchvision(lambda tensor: tensor.fill_(7)), pixels)["jpg"] == 7).all()
    assert np.array_equal(pixels, before)


def test_a_tensor_of_another_type_keeps_its_axes():
    made = run(Torchvision(lambda tensor: tensor.float() / 255), image())["jpg"]
    assert made.shape == (3, 40, 60)
    assert made.dtype == np.float32


def test_what_is_no_image_is_refused():
    with pytest.raises(TransformError, match="must return one image, as a tensor, array or Pillow image: got tuple"):
        run(Torchvision(lambda tensor: (tensor, tensor)), image())
    with pytest.raises(OptionError, match="transform is called with one image: got 3"):
        Torchvision(3)


def test_of_the_image_nothing_is_known_and_the_other_fields_stay():
    fields = {"jpg": ArraySpec("uint8", (4, 6, 3)), "cls": ArraySpec("int64", ())}
    assert Torchvision(drawn).output_fields(fields) == {"cls": ArraySpec("int64", ())}
    declared = as_op(Torchvision(drawn), {"jpg": ("uint8", (10, 100, 3))})
    assert declared.output_fields(fields) == {"jpg": ArraySpec("uint8", (10, 100, 3)), "cls": ArraySpec("int64", ())}
    assert run(declared, image())["jpg"].shape == (10, 100, 3)


def test_torchvision_v2_is_exact_in_any_thread():
    v2 = transforms("v2")
    steps = [
        v2.RandomResizedCrop(24),
        v2.RandomHorizontalFlip(),
        v2.RandomChoice([v2.ColorJitter(0.5), v2.RandomInvert()]),
    ]
    step = Torchvision(v2.Compose(steps))
    alone = results(step, image())
    assert run(step, image())["jpg"].shape == (24, 24, 3)
    assert len(set(alone)) > 50
    assert results(pickle.loads(pickle.dumps(step)), image(), threads=4) == alone


def test_torchvision_gives_what_it_gives_by_itself():
    v2 = transforms("v2")
    resize, normalize = (
        v2.Resize((20, 30)),
        v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.2])]),
    )
    tensor = torch.from_numpy(image()).permute(2, 0, 1)
    assert np.array_equal(run(Torchvision(resize), image())["jpg"], resize(tensor).permute(1, 2, 0).numpy())
    assert np.array_equal(run(Torchvision(normalize), image())["jpg"], normalize(tensor).numpy())


def test_torchvision_v1_takes_pillow_images():
    v1 = transforms("v1")
    flips, made = v1.RandomOrder([v1.RandomHorizontalFlip(1), v1.RandomApply([v1.ColorJitter(0.5)])]), v1.ToTensor()
    step = Torchvision(v1.Compose([flips, made]), pil=True)
    assert results(step, image(), threads=4) == results(step, image())
    expected = made(Image.fromarray(image())).numpy()
    assert np.array_equal(run(Torchvision(made, pil=True), image())["jpg"], expected)


# --- Albumentations


@pytest.fixture(scope="module")
def A():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks PyPI for newer releases of itself
        return pytest.importorskip("albumentations")


@pytest.fixture(scope="module")
def many(A):
    """Steps that draw from both of its generators, nested."""
    one = A.OneOf([A.ColorJitter(p=1), A.GaussNoise(p=1)], p=0.9)
    return A.Compose([A.RandomCrop(24, 24), A.HorizontalFlip(), one, A.CoarseDropout(p=0.5)])


def test_albumentations_is_exact_in_any_thread(many):
    step = Albumentations(many)
    alone = results(step, image())
    assert run(step, image())["jpg"].shape == (24, 24, 3)
    assert len(set(alone)) > 50
    assert results(step, image(), threads=8) == alone
    assert results(pickle.loads(pickle.dumps(step)), image(), threads=4) == alone


def test_steps_inside_draw_apart_from_each_other(A):
    pixels = image()
    step = Albumentations(A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]))
    turned = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    found = [[np.array_equal(run(step, pixels, p)["jpg"], one) for one in turned].index(True) for p in range(200)]
    assert min(np.bincount(found, minlength=4)) > 25


def test_a_single_transform_leaves_the_users_own_object_alone(A):
    flip = A.HorizontalFlip(p=0.5)
    before = flip.random_generator, flip.py_random.getstate()
    assert len(set(results(Albumentations(flip), image()))) == 2
    assert flip.random_generator is before[0]
    assert flip.py_random.getstate() == before[1]


def test_masks_and_boxes_change_with_the_image(A):
    step = Albumentations(
        A.Compose([A.HorizontalFlip(p=1)], bbox_params=A.BboxParams("pascal_voc", label_fields=["labels"])),
        field="jpg",
        targets={"mask": "seg.png", "bboxes": "boxes", "labels": "classes"},
    )
    pixels, mask = image(), image(channels=1, seed=1)
    mask.setflags(write=False)
    fields = {"seg.png": mask, "boxes": np.array([[0.0, 5, 10, 20]]), "classes": np.array([4])}
    made = run(step, pixels, **fields)
    assert np.array_equal(made["jpg"], pixels[:, ::-1])
    assert np.array_equal(made["seg.png"].reshape(40, 60), mask[:, ::-1, 0])
    assert np.allclose(made["boxes"], [[50, 5, 60, 20]], atol=1e-3)
    assert np.asarray(made["classes"]).tolist() == [4]
    known = dict.fromkeys([*fields, "jpg", "cls"], ArraySpec("int64", ()))
    assert step.output_fields(known) == {"cls": ArraySpec("int64", ())}


def test_a_missing_target_is_named(many):
    with pytest.raises(TransformError, match=r"Albumentations failed: there is no field 'seg\.png'"):
        run(Albumentations(many, targets={"mask": "seg.png"}), image())


def test_what_is_not_of_albumentations_is_refused(many):
    with pytest.raises(OptionError, match="with set_random_state: got function; other functions go to"):
        Albumentations(drawn)
    with pytest.raises(OptionError, match="say that with field="):
        Albumentations(many, targets={"image": "jpg"})
