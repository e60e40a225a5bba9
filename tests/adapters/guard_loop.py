"""A loop of one's own, on as many ranks as are started."""

import guard_case as g
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from headrace.adapters.guarded import Guarded


def train(case, recorded, model, found):
    replica = DistributedDataParallel(model) if g.WORLD_SIZE > 1 else model
    optimizer = case.optimizer(model.parameters())
    guarded = found["guarded"] = Guarded(replica, optimizer, case.guards, recorded=recorded)
    for batch in g.Faulty(recorded, case):
        optimizer.zero_grad()
        loss = g.loss_of(replica, batch)
        guarded.add(loss, batch)
        loss.backward()
        if guarded.allows():
            optimizer.step()
        if guarded.step == case.flip:
            g.flip_bit(model)
    guarded.settle()
    guarded.close()


if g.WORLD_SIZE > 1:
    dist.init_process_group("gloo")
g.main(train)
if g.WORLD_SIZE > 1:
    dist.barrier()
    dist.destroy_process_group()
