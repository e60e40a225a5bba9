"""The record that other libraries' loops leave: the same as a loop of one's own, and its parts add up to the time.

Each library trains once, on a loader that says itself how long its batches took, and whose batches take longer to move
to the device than to make: who times a wrapper finds that wait.
"""

import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import headrace as hr
from headrace.errors import OptionError
from headrace.rank import Rank
from headrace.report import read_run, verdict
from headrace.report.runlog import PARTS
from headrace.telemetry import read_events
from waiting import DEADLINE_SEC

pytestmark = pytest.mark.filterwarnings("ignore")

LOAD_SEC, MOVE_SEC, BACKWARD_SEC = 0.01, 0.03, 0.01
BATCHES, EPOCHS, BATCH_SIZE = 4, 2, 4
STEPS = BATCHES * EPOCHS
LIBRARIES = ["lightning", "fabric", "accelerate", "transformers"]


class Batch(dict):
    """What takes a while to move, wherever it goes."""

    def to(self, *_, **__):
        time.sleep(MOVE_SEC)
        return self


class Loading:
    """Makes batches, and knows how long those of training took."""

    def __init__(self):
        self.sec = 0.0

    def __call__(self, rows):
        began = time.perf_counter()
        time.sleep(LOAD_SEC)
        batch = Batch(torch.utils.data.default_collate(rows))
        if len(rows) == BATCH_SIZE:
            self.sec += time.perf_counter() - began
        return batch


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(BACKWARD_SEC)
        return gradient


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, cls):
        return {"loss": torch.nn.functional.cross_entropy(SlowBackward.apply(self.linear(x)), cls)}


ROWS = [{"x": torch.full((4,), float(i)), "cls": i % 3} for i in range(BATCH_SIZE * BATCHES)]
SAVE = "saved.pt"


def library(name):
    return pytest.importorskip(name, reason=f"needs {name}: pip install 'headrace[dev]'")


def with_lightning(folder, loader, epochs=EPOCHS, evaluate=True, fail_at=None, accumulate=1):
    lightning = library("lightning")
    from headrace.adapters.monitor_lightning import MonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            if fail_at is not None and self.global_step == fail_at:
                raise RuntimeError("broken")
            loss = self.model(batch["x"], batch["cls"])["loss"]
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log_dict({"val_loss": self.model(batch["x"], batch["cls"])["loss"], "accuracy": 0.5})

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=evaluate,
        accumulate_grad_batches=accumulate,
        callbacks=[MonitorCallback(folder / "run")],
    )
    trainer.fit(Module(), loader, DataLoader(ROWS, batch_size=8) if evaluate else None)


def with_transformers(folder, loader, epochs=EPOCHS, evaluate=True, fail_at=None, accumulate=1):
    transformers = library("transformers")
    from headrace.adapters.monitor_transformers import MonitorCallback

    arguments = transformers.TrainingArguments(
        str(folder / "out"),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        gradient_accumulation_steps=accumulate,
        lr_scheduler_type="constant",
        learning_rate=0.1,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="epoch" if evaluate else "no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["cls"],
    )
    model = Model()

    def fails(*_):
        if fail_at is not None and trainer.state.global_step == fail_at:
            raise RuntimeError("broken")

    model.register_forward_pre_hook(fails)
    trainer = transformers.Trainer(
        model, arguments, train_dataset=loader.dataset, eval_dataset=ROWS, data_collator=loader.collate_fn
    )
    trainer.add_callback(MonitorCallback(trainer, folder / "run"))
    trainer.train()


def by_hand(folder, loader, owner, prepare, save, epochs, evaluate, fail_at, accumulate):
    from headrace.adapters.monitor_loop import follow

    model, optimizer, batches = prepare(loader)
    with hr.Monitor(folder / "run", total_steps=STEPS, config={"batch_size": 4}) as monitor:
        for _ in range(epochs):
            for number, batch in enumerate(follow(monitor, owner, batches, optimizer), start=1):
                if monitor.steps_done == fail_at:
                    raise RuntimeError("broken")
                owner.backward(model(batch["x"], batch["cls"])["loss"])
                if number % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
            if evaluate:
                monitor.evaluated(0.5, samples=16, sec=0.1, accuracy=0.5)
                with monitor.saving(folder / SAVE):
                    save(folder / SAVE, model)


def with_accelerate(folder, loader, epochs=EPOCHS, evaluate=True, fail_at=None, accumulate=1):
    accelerator = library("accelerate").Accelerator(cpu=True)

    def prepare(loader):
        model = Model()
        return accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)

    def save(path, model):
        accelerator.save(model.state_dict(), path)

    by_hand(folder, loader, accelerator, prepare, save, epochs, evaluate, fail_at, accumulate)


def with_fabric(folder, loader, epochs=EPOCHS, evaluate=True, fail_at=None, accumulate=1):
    fabric = library("lightning").Fabric(accelerator="cpu", devices=1)

    def prepare(loader):
        model = Model()
        model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
        return model, optimizer, fabric.setup_dataloaders(loader)

    def save(path, model):
        fabric.save(path, {"model": model})

    by_hand(folder, loader, fabric, prepare, save, epochs, evaluate, fail_at, accumulate)


TRAIN = {"lightning": with_lightning, "fabric": with_fabric, "accelerate": with_accelerate}
TRAIN["transformers"] = with_transformers


def a_loader():
    return DataLoader(ROWS, batch_size=BATCH_SIZE, collate_fn=Loading())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a library's loop left, by its name."""

    @cache
    def train(name):
        folder, loader = tmp_path_factory.mktemp(name), a_loader()
        TRAIN[name](folder, loader)
        return SimpleNamespace(
            run=read_run(folder / "run"), folder=folder, load_sec=loader.collate_fn.sec, loader=loader
        )

    return train


def column(run, part):
    return run.steps[f"{part}_sec"]


def step_events(folder):
    return [event for event in read_events(folder / "run/events.jsonl") if event["event"] == "step"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_parts_add_up_to_the_wall_time(name, trained):
    """From the end of the first step to that of the last: steps and evaluations, within 1 %."""
    run = trained(name).run
    steps = run.steps
    assert np.allclose(sum(column(run, part) for part in PARTS), steps["sec"])
    told = steps["sec"].copy()
    if name in ("lightning", "transformers"):
        for event in run.evaluations[:-1]:
            told[steps["step"] == event["step"] + 1] += event["sec"]
        assert told[1:].sum() == pytest.approx(steps["time"][-1] - steps["time"][0], rel=0.01)
    else:  # what follows an evaluation in a loop of one's own is of no step
        within = steps["step"][1:] % BATCHES != 1
        assert told[1:][within].sum() == pytest.approx(np.diff(steps["time"])[within].sum(), rel=0.01)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_wait_is_that_of_the_loader_and_not_of_what_is_around_it(name, trained):
    found = trained(name)
    wait = column(found.run, "wait").sum()
    assert found.load_sec <= wait <= found.load_sec + 0.25 * MOVE_SEC * STEPS
    assert column(found.run, "copy").sum() >= MOVE_SEC * STEPS
    assert type(found.loader) is DataLoader


@pytest.mark.parametrize("name", LIBRARIES)
def test_computing_is_forward_backward_and_the_optimizer(name, trained):
    for event in step_events(trained(name).folder):
        phases = [event[f"{phase}_sec"] for phase in ("forward", "backward", "optimizer")]
        assert all(sec > 0 for sec in phases)
        assert event["backward_sec"] >= BACKWARD_SEC
        assert sum(phases) == pytest.approx(event["compute_sec"])


@pytest.mark.parametrize("name", LIBRARIES)
def test_steps_evaluations_and_checkpoints_are_in_the_record(name, trained):
    run = trained(name).run
    assert run.steps["step"].tolist() == list(range(1, STEPS + 1))
    assert run.steps["samples"].tolist() == [4] * STEPS
    assert set(run.steps["lr"]) == {0.1}
    assert np.isfinite(run.steps["loss"]).all()
    assert [event["step"] for event in run.evaluations] == [BATCHES, STEPS]
    assert all(event["loss"] > 0 and event["sec"] > 0 and event["samples"] == 16 for event in run.evaluations)
    assert {event["step"] for event in run.checkpoints} <= {BATCHES, STEPS}
    assert all(event["bytes"] > 0 and event["sec"] > 0 for event in run.checkpoints)
    assert column(run, "checkpoint").sum() > 0
    assert (run.end["step"], run.attempts[0].start["total_steps"]) == (STEPS, STEPS)
    assert sum(verdict(run).shares.values()) == pytest.approx(1)
    [*_, loader] = [event for event in read_events(run.path) if event["event"] == "loader"]
    counted = {"kind": "DataLoader", "num_workers": 0, "batches": STEPS, "samples": 4 * STEPS, "bytes_per_batch": 96}
    assert {key: loader[key] for key in counted} == counted


@pytest.mark.parametrize("name", LIBRARIES)
def test_epochs_are_counted(name, trained):
    epochs = trained(name).run.steps["epoch"]
    assert epochs.tolist() == [epoch for epoch in range(EPOCHS) for _ in range(len(epochs) // EPOCHS)]


def test_lightnings_checkpoints_may_be_saved_by_name(tmp_path):
    lightning = library("lightning")
    from headrace.adapters.monitor_lightning import MonitorCallback

    class Saves(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 1:
                trainer.save_checkpoint(filepath=tmp_path / "one.ckpt")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return self.model(batch["x"], batch["cls"])["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", devices=1, callbacks=[MonitorCallback(tmp_path / "run"), Saves()], **quiet
    )
    trainer.fit(Module(), a_loader())
    (saved,) = read_run(tmp_path / "run").checkpoints
    assert saved["path"] == str(tmp_path / "one.ckpt")


def test_an_evaluation_of_hugging_face_may_have_no_length(tmp_path):
    transformers = library("transformers")
    from headrace.adapters.monitor_transformers import MonitorCallback

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([ROWS[number] for number in range(8)])

    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=BATCH_SIZE,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["cls"],
    )
    trainer = transformers.Trainer(Model(), arguments, train_dataset=ROWS, eval_dataset=Endless())
    trainer.add_callback(MonitorCallback(trainer, tmp_path / "run"))
    trainer.train()
    assert [found["samples"] for found in read_run(tmp_path / "run").evaluations] == [None, None]


def test_what_a_loop_notes_beside_what_is_followed_is_kept(tmp_path):
    accelerator = library("accelerate").Accelerator(cpu=True)
    from headrace.adapters.monitor_loop import follow

    model = Model()
    model, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), a_loader())
    with hr.Monitor(tmp_path / "run") as monitor:
        for batch in follow(monitor, accelerator, batches, optimizer):
            monitor.note(accuracy=0.5)
            accelerator.backward(model(batch["x"], batch["cls"])["loss"])
            optimizer.step()
    run = read_run(tmp_path / "run")
    assert set(run.metrics["accuracy"]) == {0.5}
    assert not any(loss is None for loss in (event["loss"] for event in step_events(tmp_path)))


def test_an_evaluation_of_lightning_has_what_was_logged_in_it(trained):
    assert [event["metrics"] for event in trained("lightning").run.evaluations] == [{"accuracy": 0.5}] * 2


@pytest.mark.parametrize("name", LIBRARIES)
def test_batches_that_are_accumulated_are_one_step(name, tmp_path):
    TRAIN[name](tmp_path, a_loader(), epochs=1, evaluate=False, accumulate=2)
    run = read_run(tmp_path / "run")
    assert run.steps["samples"].tolist() == [8, 8]
    assert np.allclose(sum(column(run, part) for part in PARTS), run.steps["sec"])
    # The mean of the batches' losses, all of which are about log 3 before anything is learnt.
    assert run.steps["loss"][0] < 10 * np.log(3)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_step_that_fails_is_none_and_the_run_has_no_end(name, tmp_path):
    loader = a_loader()
    with pytest.raises(RuntimeError, match="broken"):
        TRAIN[name](tmp_path, loader, evaluate=False, fail_at=2)
    run = read_run(tmp_path / "run")
    assert run.steps["step"].tolist() == [1, 2]
    assert run.end is None
    if name != "transformers":  # whose callbacks are not told
        assert type(loader) is DataLoader


@pytest.mark.parametrize("name", LIBRARIES)
def test_other_ranks_are_silent(name, tmp_path, monkeypatch):
    monkeypatch.setattr("headrace.adapters.monitor.process_rank", lambda: Rank(1, 2))
    TRAIN[name](tmp_path, a_loader(), epochs=1, evaluate=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_two_real_ranks_the_first_writes_of_all_samples(tmp_path):
    library("lightning")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    of_another_launch = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "MASTER_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_another_launch)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launch, Path(__file__).parent / "record_lightning.py", tmp_path]
    ran = subprocess.run(
        command, env=environment, timeout=2 * DEADLINE_SEC, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    run = read_run(tmp_path / "rank-0")
    assert run.steps["samples"].tolist() == [8] * 8
    assert [(event["step"], event["samples"]) for event in run.evaluations] == [(4, 32), (8, 32)]
    assert not (tmp_path / "rank-1").exists()


def test_what_cannot_be_followed_is_refused(tmp_path):
    from headrace.adapters.in_place import timed_loader
    from headrace.adapters.monitor_loop import follow

    with pytest.raises(OptionError, match="an Accelerator or a Fabric, and an optimizer of PyTorch's: got str and int"):
        follow(hr.Monitor(tmp_path), "no owner", a_loader(), 1)
    with pytest.raises(OptionError, match="a range cannot be watched from within a loop"):
        timed_loader(range(3), print).__enter__()


def test_only_a_trainer_of_hugging_face_is_recorded(tmp_path):
    library("transformers")
    from headrace.adapters.monitor_transformers import MonitorCallback

    with pytest.raises(OptionError, match=r"is for a transformers\.Trainer: got a list"):
        MonitorCallback([], tmp_path)
