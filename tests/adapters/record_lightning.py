"""Two epochs of Lightning on some ranks, each of which is told a folder of its own: `record_lightning.py FOLDER`."""

import os
import sys
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from headrace.adapters.monitor_lightning import MonitorCallback

FOLDER = Path(sys.argv[1])
ROWS = [{"x": torch.full((4,), float(i)), "cls": i % 3} for i in range(32)]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(4, 3)

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.model(batch["x"]), batch["cls"])

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    devices=int(os.environ["WORLD_SIZE"]),
    strategy="ddp",
    callbacks=[MonitorCallback(FOLDER / f"rank-{os.environ['RANK']}")],
    **quiet,
)
trainer.fit(Module(), DataLoader(ROWS, batch_size=4), DataLoader(ROWS, batch_size=4))
