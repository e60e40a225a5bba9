"""Accelerate: the model is prepared, the loader registered; what is registered is saved and loaded."""

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from run import EPOCHS, RUN, SAVE_EVERY, loss_of, make_loader, make_model, record, steps_done

accelerator = Accelerator(
    cpu=True, project_config=ProjectConfiguration(project_dir=RUN, automatic_checkpoint_naming=True)
)
model = make_model()
loader = make_loader(epochs=EPOCHS)
model, optimizer, same = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
assert same is loader, "accelerate leaves what is no DataLoader as it is"
accelerator.register_for_checkpointing(loader)
if saved := list(RUN.glob("checkpoints/checkpoint_*")):
    newest = max(saved, key=lambda path: int(path.name.rpartition("_")[2]))
    accelerator.load_state(newest)
    accelerator.project_configuration.iteration = int(newest.name.rpartition("_")[2]) + 1
for batch in loader:
    record(batch)
    optimizer.zero_grad()
    accelerator.backward(loss_of(model, batch))
    optimizer.step()
    if steps_done(loader) % SAVE_EVERY == 0:
        accelerator.save_state()
