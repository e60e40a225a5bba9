"""Lightning Fabric."""

import guard_case as g
from lightning.fabric import Fabric

from headrace.adapters.guarded import Guarded

fabric = Fabric(accelerator="cpu", devices=g.WORLD_SIZE)
fabric.launch()


def train(case, recorded, model, found):
    wrapped, optimizer = fabric.setup(model, case.optimizer(model.parameters()))
    guarded = found["guarded"] = Guarded(wrapped, optimizer, case.guards, recorded=recorded)
    for batch in g.Faulty(recorded, case):
        optimizer.zero_grad()
        loss = g.loss_of(wrapped, fabric.to_device(batch))
        guarded.add(loss, batch)
        fabric.backward(loss)
        if guarded.allows():
            optimizer.step()
    guarded.close()


g.main(train)
