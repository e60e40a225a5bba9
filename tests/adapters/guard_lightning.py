"""Lightning's Trainer."""

import guard_case as g
import lightning

from headrace.adapters.guarded_lightning import GuardsCallback


class Module(lightning.LightningModule):
    def __init__(self, model, case):
        super().__init__()
        self.model, self.case = model, case

    def training_step(self, batch, index):
        return g.loss_of(self.model, batch)

    def configure_optimizers(self):
        return self.case.optimizer(self.parameters())


def train(case, recorded, model, found):
    guards = GuardsCallback(case.guards, recorded=recorded)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=g.WORLD_SIZE,
        max_epochs=1,
        callbacks=[guards],
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(Module(model, case), g.Faulty(recorded, case))
    found["guarded"] = guards.guarded


g.main(train)
