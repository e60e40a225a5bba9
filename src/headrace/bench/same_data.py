"""The data that another library's loader reads, as a stream of headrace's: where that can be had, and else why not.

What the loader's dataset does to a sample is carried over and not imitated: the user's transform, WebDataset's own
functions. Where a part of it cannot be, there is no stream, since a feed that does less is no comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.dataset import Dataset, Joined
from headrace.dataset import open as open_dataset
from headrace.errors import DatasetError, OptionError
from headrace.load import Loader, Stream
from headrace.load.foreign import raw_loader
from headrace.packing import pack
from headrace.packing.huggingface import is_object
from headrace.transform import Torchvision

DatasetLike = str | os.PathLike[str] | Dataset | Stream

_PASSED_OVER = {
    "single_node_only",
    "split_by_node",
    "split_by_worker",
    "check_empty",
    "tarfile_to_samples",
    "tar_file_expander",
    "group_by_keys",
    "StreamingOpen",
    "_shuffle",
    "_detshuffle",
    "_batched",
    "_unbatched",
}
"""WebDataset's stages that read, shuffle and batch, which the feed does by itself."""
_OF_A_SAMPLE = {"_map", "_map_dict", "_map_tuple", "_to_tuple", "_rename", "_rename_keys", "_extract_keys"}
"""Those that make one sample of one sample."""
_HUGGING_FACE_ROWS = 4096


def stream_of(loader: Any, dataset: DatasetLike | None, scratch: Path) -> tuple[Stream, str]:
    """The stream, and what to know of it ("" for nothing); `scratch` is a folder for a packed copy of some rows.

    `dataset` says what the data is; None: it is looked for in the loader. Raises DatasetError where there is none: why,
    and what to do.
    """
    if dataset is not None:
        return _given(dataset), ""
    loader = raw_loader(loader)
    if isinstance(loader, Loader):
        return loader.stream, ""
    stages = getattr(loader, "pipeline", None)
    after = stages[1:] if isinstance(stages, list) else []
    read = getattr(stages[0] if isinstance(stages, list) and stages else loader, "dataset", None)
    if isinstance(read, Stream):
        return read, ""
    if _is_image_folder(read):
        return _of_image_folder(read), ""
    if isinstance(getattr(read, "pipeline", None), list):
        return _of_webdataset(read, after), ""
    if is_object(read):
        return _of_hugging_face(read, scratch)
    raise DatasetError(
        f"a {type(loader if read is None else read).__name__} is nothing that headrace opens: pack what it reads "
        "(headrace.pack takes folders, tables, and iterables of dicts) and give dataset=, a Stream of it with the same "
        "steps"
    )


def _given(dataset: DatasetLike) -> Stream:
    if isinstance(dataset, Stream):
        return dataset
    if isinstance(dataset, Dataset | Joined):
        return Stream(dataset).decode()
    if isinstance(dataset, str | os.PathLike):
        return Stream(open_dataset(dataset)).decode()
    raise OptionError(f"dataset is a path, a URL, a headrace.Dataset or a Stream: got a {type(dataset).__name__}")


def _is_image_folder(read: Any) -> bool:
    """torchvision's ImageFolder and what is made like it."""
    return all(hasattr(read, name) for name in ("root", "samples", "class_to_idx", "transform", "loader"))


def _of_image_folder(read: Any) -> Stream:
    how = getattr(read.loader, "__name__", "")
    if getattr(read, "target_transform", None) is not None or how not in ("default_loader", "pil_loader"):
        raise DatasetError(
            "its target_transform or its loader is a function of torchvision's ImageFolder: give dataset=, a Stream of "
            "the folder with steps that do the same"
        )
    stream = Stream(open_dataset(read.root)).decode()
    if read.transform is not None:
        stream = stream.map(Torchvision(read.transform, pil=True))
    return stream.map(_image_and_class)


def _image_and_class(sample: dict[str, Any]) -> dict[str, Any]:
    [image] = [value for name, value in sample.items() if not name.startswith("__") and name != "cls"]
    return {"__key__": sample["__key__"], "image": image, "cls": sample["cls"]}


def _of_webdataset(read: Any, after: Iterable[Any]) -> Stream:
    first, *stages = read.pipeline
    urls = getattr(first, "urls", None)
    if not urls:
        raise DatasetError(f"its shards come from a {type(first).__name__}: give dataset=, a Stream of them")
    steps = []
    for stage in [*stages, *after]:
        name = getattr(getattr(stage, "f", stage), "__name__", type(stage).__name__)
        chosen = getattr(stage, "kw", {})
        if name in _OF_A_SAMPLE and stage in stages:
            steps.append((stage.f, stage.args, stage.kw))
        elif name not in _PASSED_OVER or chosen.get("select_files") or chosen.get("rename_files"):
            raise DatasetError(
                f"its stage {name.strip('_')!r} is WebDataset's alone: give dataset=, a Stream of the shards with "
                "steps that do the same"
            )
    stream = Stream(open_dataset(_place_of(list(urls))))
    return stream.map(WebDatasetSteps(tuple(steps))) if steps else stream


def _place_of(urls: list[str]) -> str:
    """One name for all of them: their folder, if it has no other shards, else the names in braces."""
    folder, names = os.path.dirname(urls[0]) or ".", [os.path.basename(url) for url in urls]
    if any((os.path.dirname(url) or ".") != folder for url in urls):
        raise DatasetError("its shards lie in several folders: give dataset=, headrace.mix of the folders")
    if Path(folder).is_dir() and {path.name for path in Path(folder).glob("*.tar")} == set(names):
        return folder
    return urls[0] if len(urls) == 1 else f"{folder}/{{{','.join(names)}}}"


@dataclass(frozen=True)
class WebDatasetSteps:
    """WebDataset's own functions, done to one sample: each takes an iterator of samples and gives one."""

    steps: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], ...]

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What they make of it; a tuple's fields are numbered. Tensors become arrays."""
        raw = {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}
        data: Any = iter([{**raw, "__url__": ""}])
        for step, arguments, named in self.steps:
            data = step(data, *arguments, **named)
        [made] = data
        fields = made if isinstance(made, dict) else dict(zip(map(str, range(len(made))), made, strict=True))
        kept = {name: _array(value) for name, value in fields.items() if not name.startswith("__")}
        return {"__key__": sample["__key__"], **kept}


def _array(value: Any) -> Any:
    return value.detach().numpy() if hasattr(value, "detach") else value


def _of_hugging_face(read: Any, scratch: Path) -> tuple[Stream, str]:
    kind = (getattr(read, "format", None) or {}).get("type")
    if kind not in (None, "torch", "numpy") or not hasattr(read, "select"):
        what = "streamed" if not hasattr(read, "select") else f"changed as it is read (format {kind!r})"
        raise DatasetError(
            f"the Hugging Face dataset is {what}: save it as it is (dataset.to_parquet) and give dataset=, a Stream of "
            "that with steps that do the same"
        )
    rows = read.select(range(min(len(read), _HUGGING_FACE_ROWS))).with_format(None)
    rows = rows.select_columns(read.format["columns"])
    pack(rows, scratch / "rows", format="parquet", shuffle=False)
    stream = Stream(open_dataset(scratch / "rows")).decode()
    return stream, f"The feed is of the first {len(rows):,} rows, packed as Parquet."
