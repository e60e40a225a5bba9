"""How long collectives wait in the groups of a mesh of four processes; ends with an error where it is not as asked."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from headrace.train.parallel import Mesh
from headrace.train.world import join_world

ASKED = timedelta(seconds=77)
CPU = torch.device("cpu")

world = join_world("cpu", ASKED)
groups = Mesh.of("dp=2,fsdp=2", world.size).devices(CPU).get_all_groups()
found = [group._get_backend(CPU).options._timeout for group in groups]
assert found == [ASKED, ASKED], found
for group in groups:
    dist.barrier(group)
world.part()
