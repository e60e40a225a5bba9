"""Guards in Lightning's and Hugging Face's Trainers: their checkpoints, and what they are refused for."""

import pytest
import torch

import headrace as hr
from headrace.errors import OptionError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GUARDS = hr.Guards(back_off=0.5, recovery_steps=10)
NAN_AT = 3


def samples(count):
    x = torch.arange(4.0 * count).reshape(count, 4) / count
    x[NAN_AT - 1] = float("nan")
    return [{"x": row, "cls": number % 3} for number, row in enumerate(x)]


def with_lightning(folder, steps, resume, **options):
    lightning = pytest.importorskip("lightning", reason="needs lightning: pip install 'headrace[dev]'")
    from headrace.adapters.guarded_lightning import GuardsCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(4, 3)

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.model(batch["x"]), batch["cls"])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    guards = GuardsCallback(GUARDS)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 9}
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[guards], enable_checkpointing=False, **quiet, **options
    )
    loader = torch.utils.data.DataLoader(samples(12), batch_size=1)
    saved = folder / "lightning.ckpt"
    trainer.fit(Module(), loader, ckpt_path=saved if resume else None, weights_only=True)
    trainer.save_checkpoint(saved)
    return guards.guarded


def with_transformers(folder, steps, resume, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'headrace[dev]'")
    from headrace.adapters.guarded_transformers import guard

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(4, 3)

        def forward(self, x, cls):
            return {"loss": torch.nn.functional.cross_entropy(self.model(x), cls)}

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_steps": steps}
    arguments = transformers.TrainingArguments(
        folder / "transformers", max_steps=steps, per_device_train_batch_size=1, **quiet, **options
    )
    trainer = InOrder(Model(), arguments, train_dataset=samples(12))
    watched = guard(trainer, GUARDS)
    trainer.train(resume_from_checkpoint=resume or None)
    return watched.guarded


@pytest.mark.parametrize("train", [with_lightning, with_transformers])
def test_a_checkpoint_has_the_guards_state(train, tmp_path):
    """The learning rate recovers from where it was, and steps are counted on."""
    first = train(tmp_path, 6, resume=False)
    assert [finding.step for finding in first.findings] == [NAN_AT]
    assert first.step == 6
    later = train(tmp_path, 8, resume=True)
    assert later.step == 8
    assert later.state_dict()["guards"]["bad_steps"]["factor"] == pytest.approx(0.5 * 2 ** (5 / 10))


def test_accumulated_batches_of_a_trainer_are_one_step(tmp_path):
    guarded = with_transformers(tmp_path, 3, resume=False, gradient_accumulation_steps=2)
    assert guarded.step == 3
    assert [finding.step for finding in guarded.findings] == [2]  # of the third batch
    guarded = with_lightning(tmp_path, 3, resume=False, accumulate_grad_batches=2)
    assert guarded.step == 3
    assert [finding.step for finding in guarded.findings] == [2]


def test_only_a_trainer_is_guarded():
    pytest.importorskip("transformers", reason="needs transformers: pip install 'headrace[dev]'")
    from headrace.adapters.guarded_transformers import guard

    with pytest.raises(OptionError, match=r"guard is for a transformers\.Trainer: got a list"):
        guard([], GUARDS)
