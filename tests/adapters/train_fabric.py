"""Lightning Fabric: the loader is part of the state that Fabric saves and loads, and is not set up by it."""

import torch
from lightning.fabric import Fabric
from run import EPOCHS, RUN, SAVE_EVERY, WORLD_SIZE, loss_of, make_loader, make_model, record, steps_done

fabric = Fabric(accelerator="cpu", devices=WORLD_SIZE)
fabric.launch()
model = make_model()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
loader = make_loader(epochs=EPOCHS)
state = {"model": model, "optimizer": optimizer, "loader": loader}
if saved := sorted(RUN.glob("*.ckpt")):
    fabric.load(saved[-1], state)
for batch in loader:
    record(batch)
    optimizer.zero_grad()
    fabric.backward(loss_of(model, fabric.to_device(batch)))
    optimizer.step()
    if steps_done(loader) % SAVE_EVERY == 0:
        fabric.save(RUN / f"{steps_done(loader):06d}.ckpt", state)
