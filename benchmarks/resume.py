"""Time to the first batch at the start of an epoch and after resuming at 90 % of it, beside what peers need.

    python benchmarks/resume.py [--samples 10000,1000000,100000000] [--rounds 3] [--only headrace,MDS]

Samples are 8 bytes (their number, twice, as uint32), shuffled by each library's own default, in batches of 100. Every
measurement is a fresh process, from making the dataset object to the first batch in the trainer's hands; imports are
not counted, files are in the page cache. Where a library reads in worker processes it has one, as headrace has.

The state is taken after 90 % of an epoch; beyond 5 million samples it is one taken after a batch, with its position set
to 90 %, where that is a number in it. A library whose dataset or state takes more than `--limit-sec` to make is left
out at that size, and said to be. `exact` is 1 where the first
batch after resuming is the one that would have come next. `cold` is the time to an epoch's first batch.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from measure import Spread, finish, ratio
from peers import load_streaming, versions

BATCH = 100
NUM_SHARDS = 16
ITERATED_UP_TO = 5_000_000
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
State = Any
Feed = tuple[Iterator[Any], Callable[[], State]]
"""An iterator of batches, and what gives its state."""


def rows_of(folder: Path) -> np.ndarray:
    """All samples, shape (samples, 2)."""
    files = sorted((folder / "tokens").glob("*.bin"))
    return np.concatenate([np.memmap(file, np.uint32, "r").reshape(-1, 2) for file in files])


class Headrace:
    """Windows of two tokens."""

    module = "headrace"

    def prepare(self, folder: Path, samples: int) -> None:
        import headrace as hr

        hr.index(folder / "tokens", dtype="uint32")

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        import headrace as hr

        loader = hr.Loader(hr.Stream(hr.open(folder / "tokens").windows(2)), batch_size=BATCH)
        if state:
            loader.load_state_dict(state)
        return iter(loader), loader.state_dict

    def ids(self, batch: Any) -> Any:
        return batch["tokens"][:, 0]

    def moved(self, state: State, position: int) -> State:
        return state | {"position": position}


class Mds:
    """mosaicml-streaming with its default shuffle, py1e."""

    module = "streaming"

    def prepare(self, folder: Path, samples: int) -> None:
        load_streaming()
        from streaming.base import MDSWriter

        with MDSWriter(out=str(folder / "mds"), columns={"x": "ndarray:uint32:2"}) as writer:
            for row in rows_of(folder):
                writer.write({"x": np.ascontiguousarray(row)})

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        load_streaming()
        from streaming.base import StreamingDataLoader, StreamingDataset

        dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
        loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1)
        if state:
            loader.load_state_dict(state)
        return iter(loader), loader.state_dict

    def ids(self, batch: Any) -> Any:
        return batch["x"][:, 0]


class LitData:
    """Chunks made by `optimize`."""

    module = "litdata"

    def prepare(self, folder: Path, samples: int) -> None:
        import litdata

        inputs = [str(file) for file in sorted((folder / "tokens").glob("*.bin"))]
        litdata.optimize(_rows, inputs, str(folder / "litdata"), chunk_bytes="4MB", num_workers=1)

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        import litdata

        dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, seed=0)
        loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=1)
        if state:
            loader.load_state_dict(state)
        return iter(loader), loader.state_dict

    def ids(self, batch: Any) -> Any:
        return batch["x"][:, 0]


class Grain:
    """A MapDataset over the rows, shuffled by index; its iterator's state."""

    module = "grain"

    def prepare(self, folder: Path, samples: int) -> None:
        pass

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        import grain

        source = grain.MapDataset.source(Rows(folder)).shuffle(seed=0).batch(BATCH)
        iterator = iter(source.to_iter_dataset())
        if state:
            iterator.set_state(state)
        return iterator, iterator.get_state

    def ids(self, batch: Any) -> Any:
        return batch[:, 0]

    def moved(self, state: State, position: int) -> State:
        assert state["next_index"] == 1, state
        return state | {"next_index": position // BATCH}


class Stateful:
    """torchdata's StatefulDataLoader over a map-style dataset."""

    module = "torchdata"

    def prepare(self, folder: Path, samples: int) -> None:
        pass

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        import torch
        from torchdata.stateful_dataloader import StatefulDataLoader

        torch.manual_seed(0)
        loader = StatefulDataLoader(Rows(folder), batch_size=BATCH, shuffle=True, num_workers=1)
        if state:
            loader.load_state_dict(state)
        return iter(loader), loader.state_dict

    def ids(self, batch: Any) -> Any:
        return batch[:, 0]


class HuggingFace:
    """Parquet files streamed with a buffer of 1,000, in a StatefulDataLoader where there is one."""

    module = "datasets"

    def prepare(self, folder: Path, samples: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        (folder / "parquet").mkdir()
        for k, file in enumerate(sorted((folder / "tokens").glob("*.bin"))):
            column = np.memmap(file, np.uint32, "r").reshape(-1, 2)[:, 0]
            pq.write_table(pa.table({"x": column}), folder / "parquet" / f"{k:02d}.parquet", row_group_size=1 << 16)

    def open(self, folder: Path, samples: int, state: State) -> Feed:
        import datasets

        files = [str(file) for file in sorted((folder / "parquet").glob("*.parquet"))]
        stored = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        stream = stored.shuffle(seed=0, buffer_size=1000).batch(BATCH)
        if state:
            stream.load_state_dict(state)
        return iter(stream), stream.state_dict

    def ids(self, batch: Any) -> Any:
        return batch["x"]


LIBRARIES: dict[str, Any] = {
    "headrace": Headrace(),
    "MDS": Mds(),
    "LitData": LitData(),
    "Grain": Grain(),
    "StatefulDataLoader": Stateful(),
    "HF streaming": HuggingFace(),
}


class Rows:
    """The rows as a random-access source; files are mapped when first asked, in whichever process."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted((folder / "tokens").glob("*.bin"))
        self._per_file = self._files[0].stat().st_size // 8
        self._length = sum(file.stat().st_size for file in self._files) // 8
        self._maps: list[Any] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if self._maps is None:
            self._maps = [np.memmap(file, np.uint32, "r").reshape(-1, 2) for file in self._files]
        file, row = divmod(int(index), self._per_file)
        return np.array(self._maps[file][row], np.int64)


def _rows(file: str) -> Iterator[dict[str, Any]]:
    for row in np.memmap(file, np.uint32, "r").reshape(-1, 2):
        yield {"x": np.array(row, np.int64)}


def write_tokens(folder: Path, samples: int) -> None:
    """Sixteen files of rows (number, number)."""
    (folder / "tokens").mkdir(parents=True)
    per_file = samples // NUM_SHARDS
    for k in range(NUM_SHARDS):
        last = samples if k == NUM_SHARDS - 1 else (k + 1) * per_file
        np.repeat(np.arange(k * per_file, last, dtype=np.uint32), 2).tofile(folder / "tokens" / f"{k:02d}.uint32.bin")


def first_batch(library: Any, folder: Path, samples: int, state: State) -> dict[str, Any]:
    """What a fresh process measures: seconds to the first batch, and the samples in it."""
    if library.module == "streaming":
        load_streaming()
    elif library.module == "headrace":
        from headrace import Loader, Stream, open  # noqa: F401 - what `import headrace` loads only when it is used
        from headrace.load import client  # noqa: F401
    else:
        __import__(library.module)
    import torch  # noqa: F401

    began = time.perf_counter()
    batches, _ = library.open(folder, samples, state)
    batch = next(batches)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "ids": [int(i) for i in library.ids(batch)]}


def state_at(library: Any, folder: Path, samples: int) -> dict[str, Any]:
    """A state at 90 % of an epoch and the samples that come next (None where the epoch is not gone through)."""
    batches, state_of = library.open(folder, samples, None)
    num_batches = samples * 9 // 10 // BATCH
    next(batches)
    if samples > ITERATED_UP_TO and hasattr(library, "moved"):
        return {"state": library.moved(state_of(), num_batches * BATCH), "next": None}
    for _ in range(num_batches - 1):
        next(batches)
    state = json.loads(json.dumps(_plain(state_of())))
    return {"state": state, "next": [int(i) for i in library.ids(next(batches))]}


def _plain(state: State) -> State:
    """The state as JSON; bytes and tensors (a random generator's) as lists that `_restored` turns back."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, bytes):
        return {"__bytes__": state.hex()}
    if type(state).__name__ == "Tensor":
        return {"__bytes__": bytes(state.tolist()).hex(), "tensor": True}
    return [_plain(one) for one in state] if isinstance(state, list | tuple) else state


def _restored(state: State) -> State:
    if isinstance(state, dict) and "__bytes__" in state:
        import torch

        data = bytes.fromhex(state["__bytes__"])
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) if "tensor" in state else data
    if isinstance(state, dict):
        return {key: _restored(value) for key, value in state.items()}
    return [_restored(one) for one in state] if isinstance(state, list) else state


def in_fresh_process(job: str, name: str, folder: Path, samples: int, limit_sec: float = 600) -> dict[str, Any]:
    """The job's answer, a line of JSON. Raises RuntimeError with its last line of stderr, or if it takes too long."""
    command = [sys.executable, __file__, "--job", job, name, str(folder), str(samples)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_sec, env=os.environ | OFFLINE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{job} takes more than {limit_sec:g} s") from None
    if done.returncode:
        raise RuntimeError(f"{job} failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def run_job(job: str, name: str, folder: Path, samples: int) -> dict[str, Any]:
    """In the fresh process."""
    library, kept = LIBRARIES[name], folder / f"{name}.state"
    if job == "prepare":
        library.prepare(folder, samples)
        return {}
    if job == "save":
        saved = state_at(library, folder, samples)
        kept.write_text(json.dumps(saved))
        return {"bytes": len(json.dumps(saved["state"])), "next": saved["next"]}
    state = _restored(json.loads(kept.read_text())["state"]) if job == "resume" else None
    return first_batch(library, folder, samples, state)


def measure(samples: int, names: list[str], num_rounds: int, limit_sec: float) -> dict[str, Spread]:
    """All libraries at one size, by turns."""
    figures: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        write_tokens(folder, samples)
        ready = {name: saved for name in names if (saved := _prepared(name, folder, samples, limit_sec))}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
        for number in range(num_rounds + 1):
            for name in ready:
                cold, resumed = (in_fresh_process(job, name, folder, samples) for job in ("cold", "resume"))
                ready[name]["exact"] = resumed["ids"] == ready[name]["next"]
                if number:
                    times[name].append((cold["seconds"], resumed["seconds"]))
                print(
                    f"  round {number}/{num_rounds} {samples:,} {name}",
                    cold["seconds"],
                    resumed["seconds"],
                    file=sys.stderr,
                )
    for name, pairs in times.items():
        cold, resumed = (Spread(one) for one in zip(*pairs, strict=True))
        label = f"{samples:,}, {name}"
        figures |= {f"{label}: cold, s": cold, f"{label}: resumed, s": resumed}
        figures[f"{label}: resumed over cold"] = ratio(resumed, cold)
        figures[f"{label}: state, bytes"] = Spread((float(ready[name]["bytes"]),))
        if ready[name]["next"]:
            figures[f"{label}: exact"] = Spread((float(ready[name]["exact"]),))
    return figures


def _prepared(name: str, folder: Path, samples: int, limit_sec: float) -> dict[str, Any] | None:
    """What the library's state is, or None, with the reason printed, where it does not get there."""
    library = LIBRARIES[name]
    if importlib.util.find_spec(library.module) is None:
        print(f"{name}: left out, {library.module} is not installed", file=sys.stderr)
        return None
    try:
        in_fresh_process("prepare", name, folder, samples, limit_sec)
        return in_fresh_process("save", name, folder, samples, limit_sec)
    except RuntimeError as err:
        print(f"{name}: left out at {samples:,}: {err}", file=sys.stderr)
        return None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", default="10000,1000000,100000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--limit-sec", type=float, default=300, help="what a peer may take to make its dataset, or a state"
    )
    parser.add_argument("--only", default=",".join(LIBRARIES))
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job, name, folder, samples = options.job
        print(json.dumps(run_job(job, name, Path(folder), int(samples))), flush=True)
        os._exit(0)  # workers and caches of all kinds are of no more use
    figures: dict[str, Spread] = {}
    for samples in map(int, options.samples.split(",")):
        figures |= measure(samples, options.only.split(","), options.rounds, options.limit_sec)
    finish(
        "time to the first batch, at an epoch's start and at 90 % of it",
        figures,
        rounds=options.rounds,
        peers=versions("mosaicml-streaming", "litdata", "grain", "torchdata", "datasets"),
    )


if __name__ == "__main__":
    main()
