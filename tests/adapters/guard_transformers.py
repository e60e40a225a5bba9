"""Hugging Face's Trainer, fed by headrace's adapter."""

import sys

import guard_case as g
import torch
from transformers import Trainer, TrainingArguments

from headrace.adapters.guarded_transformers import guard
from headrace.adapters.transformers import feed


class Model(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **batch):
        return {"loss": g.loss_of(self.model, batch)}


def train(case, recorded, model, found):
    arguments = TrainingArguments(
        sys.argv[2],
        max_steps=case.steps,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    whole = Model(model)
    trainer = Trainer(whole, arguments, optimizers=(case.optimizer(whole.parameters()), None))
    faulty = g.Faulty(recorded, case)

    def inputs(batch):
        return {name: value for name, value in faulty.change(batch).items() if name != "__key__"}

    feed(trainer, recorded, inputs=inputs)
    watched = guard(trainer, case.guards, recorded=recorded)
    trainer.train()
    found["guarded"] = watched.guarded


g.main(train)
