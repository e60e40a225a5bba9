"""The public face: these names, each with a docstring, and quick to import."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import headrace
from headrace import errors

PUBLIC = [
    "Alarms",
    "Dataset",
    "Guards",
    "HeadraceError",
    "Loader",
    "MLflow",
    "Manifest",
    "Monitor",
    "Prometheus",
    "Stream",
    "TensorBoard",
    "Trainer",
    "WandB",
    "__version__",
    "adafactor",
    "adamw",
    "class_balanced",
    "compare_feed",
    "constant",
    "cosine",
    "ema",
    "errors",
    "export_safetensors",
    "index",
    "lamb",
    "linear",
    "load_weights",
    "mix",
    "muon",
    "ondevice",
    "one_cycle",
    "open",
    "pack",
    "parallelize",
    "place_layers",
    "power_sgd",
    "sgd",
    "top_k",
    "transform",
    "tune",
    "wsd",
]
TORCH_FREE = [
    "alarms",
    "dataset",
    "errors",
    "formats",
    "order",
    "packing",
    "rank",
    "report",
    "sinks",
    "storage",
    "telemetry",
    "transform",
]
TRANSFORMS = [
    "Albumentations",
    "CenterCrop",
    "ColorJitter",
    "DecodeAudio",
    "DecodeVideo",
    "Normalize",
    "Pad",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "Resize",
    "Torchvision",
]

ERRORS = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}


def test_the_list_of_public_names_is_this_one():
    assert sorted(headrace.__all__) == PUBLIC
    assert dir(headrace) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_says_what_it_is(name):
    value = getattr(headrace, name)
    if name != "__version__":
        assert inspect.getdoc(value), f"{name} has no docstring"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_image_steps_are_where_the_contract_has_them(name):
    assert inspect.getdoc(getattr(headrace.transform, name))


@pytest.mark.parametrize(
    "room",
    [
        "alarms",
        "dataset",
        "formats",
        "load",
        "ondevice",
        "order",
        "packing",
        "report",
        "sinks",
        "telemetry",
        "train",
        "transform",
        "tuning",
    ],
)
def test_rooms_have_what_they_export(room):
    module = importlib.import_module(f"headrace.{room}")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        headrace.nothing  # noqa: B018


def test_the_tree_of_errors_shows_every_error():
    """The tree at the top of the module has each error, one step further in than its base."""
    lines = re.findall(r"^( +)([A-Z]\w+Error)\b", errors.__doc__ or "", re.M)
    assert [name for _, name in lines] == list(ERRORS)
    above: list[tuple[int, str]] = []
    for indent, name in lines:
        above = [(depth, other) for depth, other in above if depth < len(indent)]
        expected = ERRORS[above[-1][1]] if above else Exception
        assert ERRORS[name].__bases__[0] is expected
        above.append((len(indent), name))


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_says_when_it_is_raised(name):
    assert ERRORS[name].__doc__


@pytest.mark.parametrize(
    "modules", [["headrace"], [f"headrace.{room}" for room in TORCH_FREE]], ids=["headrace", "rooms"]
)
def test_importing_does_not_import_torch(modules):
    """The loader process imports these, and must not pay seconds and hundreds of megabytes for torch."""
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_headrace_is_quick_because_it_loads_nothing():
    code = "import sys, headrace; sys.exit(any(m in sys.modules for m in ('numpy', 'pyarrow', 'cv2', 'PIL', 'typer')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
