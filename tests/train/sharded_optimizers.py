"""On each of two ranks: a network sharded by FSDP2 and the same one whole, by every optimizer; how far they differ.

`python sharded_optimizers.py FOLDER` leaves FOLDER/RANK.pt: optimizer -> largest difference after 6 steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from problems import OPTIMIZERS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from headrace.train.dtensors import squared_norms
from headrace.train.optimizers import built


def network():
    """Matrices whose rows do not divide by two, a vector of one number, a convolution."""
    torch.manual_seed(0)
    hidden = nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 7)
    return nn.Sequential(nn.Conv1d(3, 5, 2), nn.Flatten(), *hidden, nn.Linear(7, 1))


def trained(description, mesh):
    model = network()
    if mesh is not None:
        for layer in (model[0], model[2], model[4], model[5]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = built(description, model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        model(torch.randn(8, 3, 3, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [getattr(param, "full_tensor", lambda param=param: param)().detach() for param in model.parameters()], model


def main(folder):
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for name, description in OPTIMIZERS.items():
        (whole, _), (sharded, model) = trained(description, None), trained(description, mesh)
        found[name] = max(float((a - b).abs().max()) for a, b in zip(whole, sharded, strict=True))
    params = list(model.parameters())
    norms = squared_norms([param.to_local() for param in params], params)
    found["norms"] = float((norms - torch.stack([one.square().sum() for one in sharded])).abs().max())
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
