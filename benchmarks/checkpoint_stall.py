"""How long training stands still for a checkpoint: saved synchronously and asynchronously, in turns, on two processes.

    python benchmarks/checkpoint_stall.py [--rounds 5] [--parameters 25] [--mesh dp fsdp] [--folder DIR]

A model of so many million parameters and its AdamW state are saved to the local disk. The stall is the time of the call
that saves, on the slower rank, as the Trainer makes it; `written` is the time until the checkpoint is complete. The
ceiling is the copy alone: reading this rank's share once and writing it to memory that is in use already. An earlier
asynchronous save has come to its end before the next round begins. The first round warms up and is left out, since
memory for the copies is taken then. Goal: an asynchronous stall of at most 10 % of a synchronous one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

RANKS = 2


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parameters", type=float, default=25, help="millions of them, 12 bytes each with AdamW")
    parser.add_argument("--mesh", nargs="+", default=["dp", "fsdp"])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one")
    return parser.parse_args()


def rank_main(options: argparse.Namespace) -> None:
    """One rank: saves in turns both ways, and leaves its seconds."""
    import torch
    from torch import nn

    import headrace as hr
    from headrace.train.homes import LocalHome
    from headrace.train.optimizers import built
    from headrace.train.parallel import Mesh, distribute
    from headrace.train.saving import Checkpoints
    from headrace.train.snapshot import Learner
    from headrace.train.world import World, join_world

    def timed(world: World, checkpoints: Checkpoints, learner: Learner, step: int) -> dict[str, float]:
        world.gather(None)  # all begin together
        began = time.perf_counter()
        state = {"step": step, "samples": 0, "loader": {}, "optimizer": "", "numbers": learner.numbers()}
        checkpoints.save(step, learner.tensors(), state)
        stall = time.perf_counter() - began
        checkpoints.wait()
        written = time.perf_counter() - began
        return {"stall": stall, "written": written, "bytes": checkpoints.finished()[0].bytes}

    def copied(learner: Learner) -> float:
        """Seconds to copy as much as a rank's share is, between memory that is in use."""
        size = sum(value.numel() for _, value in learner.model.named_parameters()) * 12 // RANKS
        source, target = torch.ones(size // 4), torch.ones(size // 4)
        began = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - began

    torch.set_num_threads(1)
    world = join_world("cpu")
    width = int((options.parameters * 1e6 / 12) ** 0.5)
    for mesh in options.mesh:
        model = nn.Sequential(*[nn.Linear(width, width) for _ in range(12)])
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        distributed = distribute(model, world, Mesh.of(mesh, world.size), "fp32")
        optimizer = built(hr.adamw(), model)
        distributed.module(torch.ones(1, width)).square().mean().backward()
        optimizer.step()
        learner = Learner(distributed, optimizer, world, shapes)
        homes = {way: LocalHome(options.folder / f"{mesh}-{way}") for way in ("sync", "async")}
        sides = {way: Checkpoints(home, world, 1, is_async=way == "async") for way, home in homes.items()}
        for number in range(options.rounds + 1):
            for way in ("sync", "async") if number % 2 else ("async", "sync"):
                found = world.gather(timed(world, sides[way], learner, number + 1))
                if world.rank == 0 and number:
                    slower = {key: max(one[key] for one in found) for key in found[0]}
                    print(json.dumps({"mesh": mesh, "way": way, **slower}), flush=True)
            ceiling = max(world.gather(copied(learner)))
            if world.rank == 0 and number:
                print(json.dumps({"mesh": mesh, "way": "copy", "stall": ceiling}), flush=True)
    world.part()


def measured(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What the ranks found, in the order of time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, "--rounds", str(options.rounds), "--parameters", str(options.parameters)]
    command += ["--folder", str(folder), "--mesh", *options.mesh]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(RANKS)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * RANKS
    return [json.loads(line) for line in outputs[0].splitlines() if line.startswith(b"{")]


def spread(values: list[float], unit: float = 1e3) -> str:
    return f"{statistics.median(values) * unit:.0f} ({min(values) * unit:.0f} to {max(values) * unit:.0f})"


def main() -> None:
    options = parsed()
    if "RANK" in os.environ:
        rank_main(options)
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        found = measured(options, folder)
    finally:
        shutil.rmtree(folder)
    for mesh in options.mesh:
        of = {
            way: [one for one in found if (one["mesh"], one["way"]) == (mesh, way)] for way in ("sync", "async", "copy")
        }
        stalls = {way: [one["stall"] for one in rows] for way, rows in of.items()}
        shares = [one / other for one, other in zip(stalls["async"], stalls["sync"], strict=True)]
        print(f"{mesh}: ceiling: copying a share of {of['sync'][0]['bytes'] / 1e6:.0f} MB: {spread(stalls['copy'])} ms")
        print(f"{mesh}: sync stall {spread(stalls['sync'])} ms, async stall {spread(stalls['async'])} ms")
        print(f"{mesh}: async written after {spread([one['written'] for one in of['async']])} ms")
        print(f"{mesh}: share {spread(shares, 100)} %")
    details = {"rounds": found, "config": {**vars(options), "folder": None}, "machine": platform.platform()}
    print(json.dumps({**details, "cpus": os.cpu_count(), "date": date.today().isoformat()}))


if __name__ == "__main__":
    main()
