"""The Trainer: an ordinary module, a loss and a loader, and all that a run needs around them.

Options are checked when it is made; processes, devices and folders are touched only by `fit`. The loop itself is in
`loop`, the arithmetic of a step in `step`, what ranks tell each other in `tally`, what is saved in `snapshot` and
`checkpoint`, what is written down in `record`. Of a loader only its contract (`contract.LoaderLike`) is used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headrace.errors import OptionError
from headrace.rank import resolve_rank
from headrace.train.archive import Archive, Keeping, num_restarts
from headrace.train.average import EMA, Average
from headrace.train.checks import check_counts, check_keeping, check_memory, check_options
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Evaluator, Metric
from headrace.train.failure import Failure
from headrace.train.frozen import fingerprint
from headrace.train.guards import Guards, Watch
from headrace.train.interrupt import StopRequest
from headrace.train.loop import Loop, Plan, Position
from headrace.train.loss_scale import LossScale
from headrace.train.objective import Inputs, Loss, Objective
from headrace.train.optimizers import ByRole, OptimizerFactory, built, trained
from headrace.train.parallel import (
    Compression,
    Mesh,
    Pipeline,
    PipelineOptions,
    Reducer,
    TensorPlan,
    distribute,
    micro_batch_plan,
    take_place,
)
from headrace.train.pipelined import PipelinedPasses
from headrace.train.randomness import seed_all
from headrace.train.record import Journal, open_record
from headrace.train.result import FitResult
from headrace.train.rundir import Resumed
from headrace.train.schedules import Constant, Schedule
from headrace.train.skipped import SkippedList
from headrace.train.snapshot import Learner, shapes_of
from headrace.train.step import Stepper
from headrace.train.watchdog import HANG_TIMEOUT_SEC, Pulse, Watchdog, collective_timeout, print_failure
from headrace.train.world import World, join_world


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is set up once, at the first `fit`."""

    world: World
    learner: Learner
    stepper: Stepper
    evaluator: Evaluator | None
    average: Average | None


class Trainer:
    """Trains a model on the batches of a loader, on as many processes as were started.

    The same script serves one process and many: under `headrace train --nproc` or torchrun each process makes the same
    Trainer, and gradients, losses and metrics are those of one process over the whole global batch. With a `run_dir`
    the run writes its events there, checkpoints, and goes on from the newest checkpoint when it is started again.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        loader: LoaderLike,
        *,
        inputs: Inputs,
        optimizer: OptimizerFactory,
        schedule: Schedule | None = None,
        mesh: str = "dp",
        tp_plan: TensorPlan | None = None,
        pp_schedule: str = "1f1b",
        pp_stages: Sequence[str] | None = None,
        precision: str = "fp32",
        compression: Compression | None = None,
        activation_checkpointing: str | None = None,
        compile: bool = False,
        micro_batch_size: int | None = None,
        evaluate: LoaderLike | None = None,
        evaluate_every: float = 1,
        metrics: Mapping[str, Metric] | None = None,
        clip_grad_norm: float | None = None,
        ema: float | EMA | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        checkpoint_every: int | None = None,
        keep_checkpoints: int = 2,
        keep_best: str | tuple[str, str] | None = None,
        checkpoints: str | Path | None = None,
        checkpoint_async: bool | None = None,
        guards: Guards | None = None,
        save_frozen: bool = True,
        run_dir: str | Path | None = None,
        hang_timeout_sec: float | None = HANG_TIMEOUT_SEC,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        """Describe a run. Raises OptionError for options that cannot work.

        - `inputs(batch)` gives the model's arguments: a tensor, a tuple, or a dict of keywords.
        - `loss(output, batch)` gives the mean over the batch's samples, or a pair of that and a dict of scalars, which
          are averaged and recorded too. The key `weight` in it replaces the number of samples as the mean's weight
          (the number of tokens, say). Gradients are those of the mean over the whole global batch.
        - `optimizer(params)` gives the torch optimizer: `headrace.adamw()`, `sgd`, `lamb`, `adafactor` or `muon`, or a
          function.
        - `precision`: "fp32", or "bf16" or "fp16" (forward and loss under autocast; weights stay in fp32; with fp16 the
          loss is scaled, and a step whose gradients overflow is left out).
        - `mesh`: "dp" (replicas), "fsdp" (sharded), "tp" (tensor parallel), "pp" (pipeline), or several with sizes,
          "dp=2,fsdp=4"; see the page on training.
        - `tp_plan`: module names, with * for a part, and how each is cut: "colwise", "rowwise", "colwise_gather",
          "embedding", "sequence" or a torch ParallelStyle. None: the model's own plan, or one for its MLPs.
        - `pp_schedule`: "1f1b", "gpipe", or "interleaved" (two stages a process).
        - `pp_stages`: the modules at which each stage but the first begins; None: stages with even parameters.
        - `compression`: how gradients go between replicas: None (as they are), "bf16", "fp16", `headrace.power_sgd()`
          or `headrace.top_k()`.
        - `activation_checkpointing`: the model's repeated blocks make their activations again in the backward pass: all
          of them ("full"), or all but products of matrices, convolutions and attention ("selective").
        - `compile`: blocks, or a model without any, run through torch.compile; the first step takes long.
        - `micro_batch_size`: samples that one forward pass of a rank takes at most; gradients add up over a batch.
        - `evaluate`: a loader that ends, run every `evaluate_every` epochs (0.5: twice an epoch) and at the end,
          over real samples only.
        - `metrics`: name -> fn(output, batch) giving one value a sample, shape (batch,); evaluated exactly.
        - `clip_grad_norm`: largest norm of all gradients together; one that is not finite is an error then.
        - `ema`: keeps an exponential moving average of the weights, by a decay or `headrace.ema(...)`, which is what is
          evaluated; `averaged()` puts it in place.
        - `epochs` or `steps`: how far `fit` goes; neither: the loader's own epochs.
        - `checkpoint_every`: steps between checkpoints; one is written at the end and at SIGTERM anyway.
        - `keep_checkpoints`: how many of the newest stay.
        - `keep_best`: "loss", "accuracy", or a metric with its direction, ("f1", "max"): an evaluation better than all
          before makes a checkpoint due, and the best one stays too.
        - `checkpoints`: where they go, a path or a store's URL; None: into `run_dir`.
        - `checkpoint_async`: training goes on while a checkpoint is written; it takes as much memory of the host as a
          rank writes. None: on a GPU.
        - `guards`: what is watched for and answered during the run: `headrace.Guards()`; None: nothing, and a loss that
          is not finite is an error.
        - `hang_timeout_sec`: a step of several processes that takes longer ends all of them, with a report of who hangs
          where; the first step, a batch of an evaluation and a checkpoint may take three times as long. None: never.
        - `save_frozen=False`: checkpoints leave out parameters that are not trained, and a run goes on from one only if
          they are the same again (their hash is in it): for adapters beside a large model.
        - `device`: None takes this process's GPU, or the CPU where there is none.
        """
        averaging = EMA(ema) if isinstance(ema, float | int) else ema
        check_options(
            precision=precision,
            mesh=mesh,
            tp_plan=tp_plan,
            pp_schedule=pp_schedule,
            pp_stages=pp_stages,
            compression=compression,
            ema=averaging,
            save_frozen=save_frozen,
            activation_checkpointing=activation_checkpointing,
            metrics=metrics,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            clip_grad_norm=clip_grad_norm,
            guards=guards,
            hang_timeout_sec=hang_timeout_sec,
        )
        best = check_keeping(keep_best, evaluate, checkpoints)
        check_counts(
            micro_batch_size=micro_batch_size,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            epochs=epochs,
            steps=steps,
        )
        self.model = model
        self.loader = loader
        self.run_dir = Path(run_dir) if run_dir is not None else None
        self.config: dict[str, Any] = {}
        """What else the record of the run should say of it; JSON values."""
        self.tell_hang: Callable[[Failure], None] = print_failure
        """What the watchdog does with its verdict, before it ends this process."""
        self.told_to_stop = False
        """Whether this process itself, and not only another rank, was asked to stop while it was fitting."""
        self._loss = loss
        self._inputs = inputs
        self._optimizer = optimizer
        self._schedule = schedule or Constant()
        self._mesh = mesh
        self._tp_plan = tp_plan
        self._pp_schedule = pp_schedule
        self._pp_stages = pp_stages
        self._precision = precision
        self._compression = compression
        self._activation_checkpointing = activation_checkpointing
        self._compile = compile
        self._micro_batch_size = micro_batch_size
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._metrics = dict(metrics or {})
        self._clip_grad_norm = clip_grad_norm
        self._ema = averaging
        self._goal = (epochs, steps)
        self._checkpoint_every = checkpoint_every
        self._keep_checkpoints = keep_checkpoints
        self._keep_best = best
        self._checkpoints = checkpoints
        self._checkpoint_async = checkpoint_async
        self._guards = guards
        self._hang_timeout_sec = hang_timeout_sec
        self._save_frozen = save_frozen
        self._seed = seed
        self._device = device
        self._parts: _Parts | None = None
        self._archived: Archive | None = None
        self._position = Position()
        self._whole = True  # no fit was left by an error

    @property
    def step(self) -> int:
        """Completed steps."""
        return self._position.step

    @property
    def making(self) -> int | None:
        """The step that is being made, or that an error ended, counted from 1; None between steps."""
        return self._position.making

    def fit(self, epochs: int | None = None, steps: int | None = None, resume: str | Path = "auto") -> FitResult:
        """Train up to `epochs` passes over the data, or `steps` steps, counted from the beginning of the run.

        `resume`: "auto" goes on from the newest readable checkpoint in `run_dir`, if any; "never" starts anew and
        refuses a folder that holds a run; a path names a checkpoint, or a run whose newest is taken. A further call
        goes on where the last one ended. Collective: every process calls it.
        """
        began = time.perf_counter()
        check_counts(epochs=epochs, steps=steps)
        parts = self._parts = self._parts or self._set_up()
        plan = self._plan(*((epochs, steps) if epochs or steps else self._goal))
        archive = self._archive(parts.learner)
        watchdog = Watchdog(parts.world, self.run_dir, self._hang_timeout_sec, self.tell_hang)
        with archive.held(), StopRequest() as request, watchdog as pulse:
            resumed = self._go_on(parts.world, archive, resume)
            result = self._run(parts, plan, archive, resumed, request, pulse, began)
            self.told_to_stop = request.requested
            return result

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model has the averaged weights, once `fit` was called; afterwards its own again.

        Raises OptionError without `ema`. On every process where parameters are sharded.
        """
        average = self._parts.average if self._parts is not None else None
        if average is None:
            raise OptionError("averaged weights are there once fit was called with ema: set Trainer(ema=0.999), say")
        return average.in_place()

    def _run(
        self,
        parts: _Parts,
        plan: Plan,
        archive: Archive,
        resumed: Resumed | None,
        request: StopRequest,
        pulse: Pulse,
        began: float,
    ) -> FitResult:
        rank = parts.world.rank
        with (
            closing(open_record(self.run_dir, rank)) as record,
            SkippedList(self.run_dir, rank, self.loader) as skipped,
        ):
            journal = Journal(record, skipped)
            self._announce(journal, parts.world, plan, resumed)
            self._whole = False
            loop = self._loop(parts, plan, archive, journal, pulse)
            stopped = loop.run(request)
            pulse.beat("end")
            self._whole = True
            result = self._result(loop, plan, stopped, resumed, time.perf_counter() - began)
            if stopped is None:
                journal.end(
                    step=result.steps,
                    epochs=result.epochs,
                    samples=result.samples,
                    sec=result.sec,
                    loss=result.loss,
                    metrics=result.metrics,
                    traffic=result.traffic,
                )
        parts.world.part()
        return result

    def _loop(self, parts: _Parts, plan: Plan, archive: Archive, journal: Journal, pulse: Pulse) -> Loop:
        return Loop(
            plan,
            self._position,
            parts.world,
            self.model,
            self.loader,
            parts.stepper,
            self._schedule,
            parts.evaluator,
            archive,
            journal,
            self._watch(parts, journal),
            pulse,
        )

    def _watch(self, parts: _Parts, journal: Journal) -> Watch | None:
        return None if self._guards is None else Watch(self._guards, parts.learner, journal.guard)

    def _set_up(self) -> _Parts:
        """Join the other processes and give the model its place; the order of what is collective is the same on all."""
        world = join_world(self._device, collective_timeout(self._hang_timeout_sec))
        mesh = Mesh.of(self._mesh, world.size)
        check_memory(self.model)
        take_place(mesh, world)
        if self._guards is not None and self._guards.replay_every is not None and mesh.fsdp * mesh.tp * mesh.pp > 1:
            raise OptionError(
                f"a replay needs the whole model on every rank: got mesh={self._mesh!r}; say mesh='dp', or leave "
                "replay_every away"
            )
        if mesh.pp == 1:
            self.model.to(world.device)
        self.model.train()
        trained(self.model)  # a model without parameters to train is refused before it is distributed
        shapes = shapes_of(self.model)
        frozen = None if self._save_frozen else world.agree(lambda: fingerprint(self.model))
        objective = Objective(self._inputs, self._loss, self._precision, world.device)
        if mesh.pp > 1 and isinstance(self._optimizer, ByRole):
            raise OptionError(
                f"{_shown(self._optimizer)} must see the whole model, and a stage of a pipeline is a part: take "
                "adamw(), or a mesh without pp"
            )
        number, size = self._micro_batches(mesh)
        reducer = Reducer(self._compression, self.model, world)
        distributed = distribute(
            self.model,
            world,
            mesh,
            self._precision,
            tp_plan=self._tp_plan,
            reducer=reducer,
            pipeline=PipelineOptions(self._pp_schedule, self._pp_stages, number),
            casting=objective.casting,
            activation_checkpointing=self._activation_checkpointing,
            compile=self._compile,
        )
        optimizer = built(self._optimizer, distributed.model)
        average = None if self._ema is None else Average(distributed.model, optimizer, self._ema)
        scale = LossScale(world, replicas=mesh.dp == world.size) if self._precision == "fp16" else None
        pipelined = None
        if isinstance(distributed, Pipeline):
            pipelined = PipelinedPasses(distributed, objective, number, size)
        stepper = Stepper(
            world,
            distributed,
            objective,
            optimizer,
            reducer,
            scale,
            mesh=mesh,
            rank_batch_size=self.loader.global_batch_size / mesh.data_size,
            full_batches=self.loader.full_batches,
            micro_batch_size=self._micro_batch_size,
            pipelined=pipelined,
            clip_grad_norm=self._clip_grad_norm,
            guarded=self._guards is not None,
        )
        evaluator = None
        if self._evaluate is not None:
            _ = self._evaluate.steps_per_epoch  # one that cannot work at this world size is refused now
            weights = average.in_place if average is not None and average.evaluated else nullcontext
            evaluator = Evaluator(
                world,
                distributed,
                objective,
                self._evaluate,
                self._metrics,
                self._micro_batch_size,
                mesh,
                pipelined,
                weights,
            )
        kept = (reducer,) if scale is None else (reducer, scale)
        learner = Learner(distributed, optimizer, world, shapes, kept, average, frozen)
        return _Parts(world, learner, stepper, evaluator, average)

    def _micro_batches(self, mesh: Mesh) -> tuple[int, int]:
        rank_batch_size = -(-self.loader.global_batch_size // mesh.data_size)
        return micro_batch_plan(rank_batch_size, self._micro_batch_size, mesh.pp, self._pp_schedule)

    def _plan(self, epochs: int | None, steps: int | None) -> Plan:
        if epochs is not None and steps is not None:
            raise OptionError(f"give epochs or steps, not both: got epochs={epochs}, steps={steps}")
        per_epoch = self.loader.steps_per_epoch
        if per_epoch < 1:
            raise OptionError("an epoch has no full global batch: make the batch smaller, or say drop_last=False")
        epochs = epochs or (None if steps else self.loader.epochs)
        if epochs is None and steps is None:
            raise OptionError("the loader is endless, so say how far to go: fit(epochs=...) or fit(steps=...)")
        if self.run_dir is None:
            needy = {"checkpoint_every": self._checkpoint_every, "keep_best": self._keep_best}
            for name, value in {**needy, "checkpoints": self._checkpoints}.items():
                if value is not None:
                    raise OptionError(f"{name} needs a place for what the run keeps: set run_dir")
        return Plan(
            total_steps=steps or (epochs or 0) * per_epoch,
            steps_per_epoch=per_epoch,
            evaluate_every=max(1, round(self._evaluate_every * per_epoch)),
            checkpoint_every=self._checkpoint_every,
        )

    def _archive(self, learner: Learner) -> Archive:
        if self._archived is not None and self._archived.run_dir == self.run_dir:
            return self._archived  # it knows what was the best
        is_async = learner.world.device.type != "cpu" if self._checkpoint_async is None else self._checkpoint_async
        keeping = Keeping(self._keep_checkpoints, self._keep_best, self._checkpoints, is_async)
        self._archived = Archive(self.run_dir, learner, self.loader, keeping, seed=self._seed, config=self._config)
        return self._archived

    def _go_on(self, world: World, archive: Archive, resume: str | Path) -> Resumed | None:
        """Go to where training begins: where the last `fit` ended, a checkpoint, or step 0."""
        if self._position.step and self._whole and resume == "auto":
            if self._position.loader is not None:
                self.loader.load_state_dict(self._position.loader)
            return None
        found = archive.go_on(resume)
        if found is not None:
            resumed, self._position = found
            return resumed
        if self._position.step:
            raise OptionError(
                f"this Trainer has trained {self._position.step} steps already, and there is no checkpoint to go back "
                "to: make a new one, with a new model, to start anew"
            )
        seed_all(self._seed, resolve_rank().rank)
        return None

    def _announce(self, journal: Journal, world: World, plan: Plan, resumed: Resumed | None) -> None:
        journal.start(
            attempt=num_restarts(),
            world_size=world.size,
            pids=world.gather(os.getpid()),
            step=self._position.step,
            resumed_from=str(resumed.path) if resumed else None,
            total_steps=plan.total_steps,
            mesh=self._mesh,
            precision=self._precision,
            global_batch_size=self.loader.global_batch_size,
            config=self._config(),
        )

    def _config(self) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__,
            "parameters": sum(param.numel() for param in self.model.parameters()),
            "optimizer": _shown(self._optimizer),
            "schedule": _shown(self._schedule),
            "compression": None if self._compression is None else str(self._compression),
            "activation_checkpointing": self._activation_checkpointing,
            "compile": self._compile,
            "micro_batch_size": self._micro_batch_size,
            "clip_grad_norm": self._clip_grad_norm,
            "checkpoints": None if self._checkpoints is None else str(self._checkpoints),
            "checkpoint_async": self._checkpoint_async,
            "keep_best": None if self._keep_best is None else [self._keep_best.metric, self._keep_best.mode],
            "guards": asdict(self._guards) if self._guards is not None else None,
            "hang_timeout_sec": self._hang_timeout_sec,
            "ema": None if self._ema is None else repr(self._ema),
            "seed": self._seed,
            **self.config,
        }

    def _result(self, loop: Loop, plan: Plan, stopped: str | None, resumed: Resumed | None, sec: float) -> FitResult:
        steps = self._position.step
        whole, left = divmod(steps, plan.steps_per_epoch)
        found = loop.evaluation or loop.latest
        return FitResult(
            steps=steps,
            epochs=round(steps / plan.steps_per_epoch, 2) if left else whole,
            samples=self._position.samples,
            sec=sec,
            loss=found.loss if found else None,
            metrics=dict(found.metrics) if found else {},
            traffic=loop.traffic,
            overflowed_steps=loop.overflowed_steps,
            stopped=stopped,
            resumed_from=resumed.path if resumed else None,
            run_dir=self.run_dir,
        )


def _shown(part: Any) -> str:
    """A description as it prints; of a function its name, since its address would differ in every run."""
    return getattr(part, "__qualname__", None) or repr(part)
