"""Hugging Face's Trainer, fed by headrace's adapter."""

import torch
from run import EPOCHS, RUN, SAVE_EVERY, loss_of, make_loader, make_model, record
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from headrace.adapters.transformers import feed


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make_model()

    def forward(self, **batch):
        record(batch)
        return {"loss": loss_of(self.model, batch)}


trainer = Trainer(
    Model(),
    TrainingArguments(
        RUN,
        num_train_epochs=EPOCHS,
        save_steps=SAVE_EVERY // 2,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    ),
)
feed(trainer, make_loader(), inputs=dict)
trainer.train(resume_from_checkpoint=get_last_checkpoint(RUN))
