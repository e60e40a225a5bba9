"""Lightning's Trainer: it asks the loader for its state by itself, in the middle of an epoch too."""

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from run import EPOCHS, RUN, SAVE_EVERY, WORLD_SIZE, loss_of, make_loader, make_model, record


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = make_model()

    def training_step(self, batch, index):
        record(batch)
        return loss_of(self.model, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer = lightning.Trainer(
    accelerator="cpu",
    devices=WORLD_SIZE,
    max_epochs=EPOCHS,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ModelCheckpoint(RUN, save_last=True, every_n_train_steps=SAVE_EVERY)],
)
trainer.fit(Module(), make_loader(), ckpt_path="last")
