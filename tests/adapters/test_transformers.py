"""Hugging Face's Trainer on a loader: what the killed runs beside this do not show."""

import shutil

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import OptionError, StateError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install 'headrace[dev]'")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "packed"
    hr.pack(({"npy": np.full(4, i, np.float32), "cls": i % 3} for i in range(60)), folder)
    return hr.open(folder)


class Model(torch.nn.Module):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.seen = []

    def forward(self, npy, cls):
        self.seen.append(npy[:, 0].tolist())
        return {"loss": torch.nn.functional.cross_entropy(self.linear(npy), cls)}


def make(transformers, numbers, run, epochs=1, fed=True, **options):
    """A trainer, its model, and what makes its loader; batches of 10, a checkpoint every 4 steps."""
    from headrace.adapters.transformers import feed

    options = {"max_steps": 10, "save_steps": 4, "use_cpu": True, "report_to": [], "disable_tqdm": True} | options
    model, loader = Model(), hr.Loader(hr.Stream(numbers, epochs=epochs).decode(), batch_size=10, threads=1)
    dataset = [{"npy": torch.zeros(4), "cls": 0}] * 60
    trainer = transformers.Trainer(model, transformers.TrainingArguments(run, **options), train_dataset=dataset)
    if fed:
        feed(trainer, loader)
    return trainer, model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "options"),
    [(None, {}), (1, {"ignore_data_skip": True}), (1, {"restore_callback_states_from_checkpoint": True})],
    ids=["endless", "no stand-ins", "callbacks made anew"],
)
def test_a_checkpoint_goes_on_with_the_exact_batch(transformers, numbers, tmp_path, epochs, options):
    trainer, model = make(transformers, numbers, tmp_path / "run", epochs, **options)
    trainer.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    trainer, again = make(transformers, numbers, tmp_path / "run", epochs, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))
    assert trainer.state.global_step == 10
    assert again.seen == model.seen[8:]


@pytest.mark.slow
def test_a_checkpoint_without_the_loaders_state_is_refused(transformers, numbers, tmp_path):
    trainer, _ = make(transformers, numbers, tmp_path / "run", fed=False)
    trainer.train()
    trainer, model = make(transformers, numbers, tmp_path / "run")
    with pytest.raises(StateError, match=r"checkpoint of step 4 has no state of a headrace\.Loader"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert model.seen == []


@pytest.mark.slow
def test_other_arguments_are_refused(transformers, numbers, tmp_path):
    from headrace.adapters.transformers import feed

    trainer, _ = make(transformers, numbers, tmp_path / "run", fed=False)
    with pytest.raises(OptionError, match="got Trainer and Stream"):
        feed(trainer, hr.Stream(numbers))
