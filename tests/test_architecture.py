"""The house holds: imports point down only, a foreign library is imported in its rooms only, modules stay small."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "headrace"
MOST_LINES = 450

# What each room (or module at the top) may import of ours. Below itself, and nothing beside or above.
BASE = {"errors", "version", "rank", "telemetry"}
STORED = BASE | {"storage", "formats", "dataset"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "rank": {"errors"},
    "telemetry": {"errors"},
    "sinks": {"errors", "telemetry"},
    "order": {"errors"},
    "transform": {"errors"},
    "storage": BASE,
    "formats": BASE | {"storage", "order"},
    "dataset": BASE | {"storage", "formats", "order"},
    "ondevice": {"errors", "transform"},
    "load": STORED | {"order", "transform", "ondevice"},
    "alarms": {"errors", "version", "telemetry", "load", "report"},
    "adapters": BASE | {"load", "train", "alarms", "sinks"},
    "train": STORED - {"formats"} | {"order", "transform", "load", "alarms", "sinks"},
    "tuning": {"errors", "telemetry", "train"},
    "packing": STORED | {"order", "transform", "load"},
    "report": {"errors", "telemetry"},
    "bench": STORED | {"order", "transform", "load", "packing", "report"},
}
TOP = {"cli", "__init__"}  # these may import everything

# Where a foreign library may be imported. One that is not here has no room yet: decide where it belongs.
ANYWHERE = {"numpy", "orjson"}
LIBRARY_ROOMS: dict[str, set[str]] = {
    "pyarrow": {"formats"},
    "obstore": {"storage"},
    "fsspec": {"storage"},
    "paramiko": {"storage"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "google_crc32c": {"formats"},
    "tokenizers": {"packing"},
    "duckdb": {"packing"},
    "datasets": {"packing"},
    "cv2": {"transform"},
    "simplejpeg": {"transform"},
    "PIL": {"transform", "bench"},
    "soundfile": {"transform"},
    "torchcodec": {"transform"},
    "torch": {"load", "ondevice", "train", "tuning", "adapters", "transform"},
    "deepspeed": {"train"},
    "torchvision": {"ondevice"},
    "optuna": {"tuning"},
    "torchao": {"train"},
    "horovod": {"train"},
    "tensorboard": {"sinks"},
    "prometheus_client": {"sinks"},
    "mlflow": {"sinks"},
    "wandb": {"sinks"},
    "transformers": {"adapters"},
    "lightning": {"adapters"},
    "xxhash": {"formats", "dataset", "packing", "storage", "order", "train"},
    "cloudpickle": {"load", "packing", "train"},
    "rich": {"telemetry", "report", "cli"},
    "typer": {"cli"},
    "click": {"cli"},  # typer's own base, for its error types
}

MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every import, those inside functions too: full name, line, and whether it is for type checkers only."""
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) in for_types
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: say the full name: from headrace... import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in for_types


def rooms_imported(path: Path) -> Iterator[tuple[str, int]]:
    """Our rooms that a module imports. Imports for type checkers count: they are knowledge of the other room too."""
    for name, line, _ in imports(path):
        first, _, rest = name.partition(".")
        if first == "headrace":
            yield rest.partition(".")[0] or "__init__", line


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    room = room_of(path)
    if room in TOP:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT what lies below it"
    for other, line in rooms_imported(path):
        known = other if (SOURCE / other).exists() or (SOURCE / f"{other}.py").exists() else "__init__"
        assert known == room or known in MAY_IMPORT[room], f"{name_of(path)}:{line}: {room} must not import {other}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_foreign_libraries_stay_in_their_rooms(path):
    room = room_of(path)
    for name, line, for_types in imports(path):
        library = name.partition(".")[0]
        if library in {"headrace", *ANYWHERE} or library in sys.stdlib_module_names or for_types:
            continue
        place = f"{name_of(path)}:{line}"
        assert library in LIBRARY_ROOMS, f"{place}: {library} has no room: say in LIBRARY_ROOMS where it belongs"
        assert room in LIBRARY_ROOMS[library], f"{place}: {library} belongs in {sorted(LIBRARY_ROOMS[library])}"


def test_no_cycles_between_rooms():
    """Holds for the arrows as allowed, and so for every import that the tests above let through."""
    done: set[str] = set()
    while left := {room for room in MAY_IMPORT if room not in done}:
        free = {room for room in left if MAY_IMPORT[room] <= done}
        assert free, f"these import each other in a circle: {sorted(left)}"
        done |= free


def test_every_room_is_there():
    """The table above has no room that the house does not have."""
    assert {room_of(path) for path in MODULES} - TOP >= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_stay_small(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name_of(path)} has {lines} lines: ask what second idea it holds"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_begin_with_their_idea(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} has no docstring"
