"""Accelerate. The optimizer is asked for every step, also for those that are not allowed."""

import guard_case as g
from accelerate import Accelerator

from headrace.adapters.guarded import Guarded

accelerator = Accelerator(cpu=True)


def train(case, recorded, model, found):
    prepared, optimizer = accelerator.prepare(model, case.optimizer(model.parameters()))
    guarded = found["guarded"] = Guarded(prepared, optimizer, case.guards, recorded=recorded)
    for batch in g.Faulty(recorded, case):
        optimizer.zero_grad()
        loss = g.loss_of(prepared, batch)
        guarded.add(loss, batch)
        accelerator.backward(loss)
        guarded.allows()
        optimizer.step()
    guarded.close()


g.main(train)
accelerator.end_training()
