"""What runs on the machines of `test_machines`: `python machine_rank.py WHAT URL` packs the data, streams it as one
rank of several, or trains on it. The rank comes from torchrun's variables; the last line printed is JSON."""

import json
import sys

import numpy as np
import torch
import torch.distributed as dist

import headrace as hr

NUM_SAMPLES, SAMPLE_BYTES = 1024, 32_000
GLOBAL_BATCH_SIZE, EPOCHS = 128, 3
MEMORY_BYTES = 640 << 10
"""Of the stored bytes that a rank holds. Of so small a dataset it would else be several epochs, which are then read for
nobody when the last one ends."""


def samples():
    """Sample i has the key i, a class, and bytes that are the same wherever they are made."""
    rng = np.random.default_rng(0)
    for i in range(NUM_SAMPLES):
        yield {"__key__": f"{i:05d}", "cls": i % 3, "bin": rng.bytes(SAMPLE_BYTES)}


def pack(url):
    hr.pack(samples(), url, shard_size="4MiB", shuffle=False)


def described(url, **options):
    """Blocks of two samples and 12 partitions of 85 or 86: cuts fall inside of blocks."""
    return hr.Stream(hr.open(url), seed=4, partitions=12, block_size="64KiB", **options)


def stream(url):
    """Every step's keys on all ranks, as this one was told of them by the others while they were at that step."""
    dist.init_process_group("gloo")
    steps = []
    with hr.Loader(described(url, epochs=EPOCHS), global_batch_size=GLOBAL_BATCH_SIZE, memory=MEMORY_BYTES) as loader:
        for batch in loader:
            shares = [None] * dist.get_world_size()
            dist.all_gather_object(shares, batch["__key__"])
            steps.append(shares)
        state = loader.state_dict()
    dist.destroy_process_group()
    return {"steps": steps, "state": state}


def features(sample):
    pixels = np.frombuffer(sample["bin"], np.uint8)[:64]
    return {"x": pixels.astype(np.float32) / 256 - 0.5, "y": int(bytes(sample["cls"]))}


def train(url):
    """The loss after two epochs, and the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 3)
    data = described(url, epochs=1).map(features, shapes={"x": ("float32", (64,)), "y": ("int64", ())})
    loader = hr.Loader(data, global_batch_size=GLOBAL_BATCH_SIZE)
    trainer = hr.Trainer(
        *(model, lambda output, batch: torch.nn.functional.cross_entropy(output, batch["y"]), loader),
        inputs=lambda batch: batch["x"],
        optimizer=hr.sgd(0.1),
        device="cpu",
    )
    result = trainer.fit(epochs=2)
    loader.close()
    return {"steps": result.steps, "samples": result.samples, "loss": result.loss, "weights": model.weight.tolist()}


if __name__ == "__main__":
    print(json.dumps({"pack": pack, "stream": stream, "train": train}[sys.argv[1]](sys.argv[2])))
