"""The Trainer: an ordinary module, a loss and a loader, and all that a run needs around them.

Options are checked when it is made; processes, devices and folders are touched only by `fit`. The loop itself is in
`loop`, the arithmetic of a step in `step`, what ranks tell each other in `tally`, what is saved in `snapshot` and
`checkpoint`, what is written down in `record`. Of a loader only its contract (`contract.LoaderLike`) is used.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headrace.alarms import Alarms, Watcher
from headrace.errors import OptionError
from headrace.rank import resolve_rank
from headrace.sinks import Sink, sinks_of
from headrace.telemetry import EventWriter, HostMeter
from headrace.train.archive import Archive, Keeping, num_restarts
from headrace.train.average import EMA, Average
from headrace.train.best import BestRule
from headrace.train.checks import check_counts, check_options
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Metric
from headrace.train.failure import Failure
from headrace.train.flops import FlopCount, may_count, peak_flops
from headrace.train.guards import Guards, Watch
from headrace.train.interrupt import StopRequest
from headrace.train.loop import Loop, Plan, Position
from headrace.train.objective import Inputs, Loss
from headrace.train.optimizers import OptimizerFactory
from headrace.train.options import Options
from headrace.train.parallel import (
    Compression,
    TensorPlan,
)
from headrace.train.profiling.options import Profile
from headrace.train.profiling.tracer import FOLDER as PROFILES
from headrace.train.profiling.tracer import Tracer, Written
from headrace.train.randomness import seed_all
from headrace.train.record import Journal, Record, feed_sinks, open_record
from headrace.train.result import FitResult
from headrace.train.rundir import Resumed
from headrace.train.schedules import Constant, Schedule
from headrace.train.setup import Parts, set_up
from headrace.train.skipped import SkippedList
from headrace.train.snapshot import Learner
from headrace.train.watchdog import HANG_TIMEOUT_SEC, Pulse, Watchdog, print_failure
from headrace.train.world import World


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
        engine: str | None = None,
        zero_stage: int = 2,
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
        checkpoint_async: bool = False,
        guards: Guards | None = None,
        alarms: Alarms | None = None,
        profile: tuple[int, int] | None = None,
        profile_all_ranks: bool = False,
        save_frozen: bool = True,
        run_dir: str | Path | None = None,
        sinks: Sequence[Sink | str] = (),
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
          loss is scaled, and a step whose gradients overflow is left out), or "float8" (bf16, with the linear layers of
          blocks multiplying in float8, by torchao, on GPUs that can).
        - `mesh`: "dp" (replicas), "fsdp" (sharded), "tp" (tensor parallel), "pp" (pipeline), or several with sizes,
          "dp=2,fsdp=4"; see the page on training.
        - `engine`: "horovod" has Horovod average gradients; "deepspeed" has DeepSpeed's ZeRO make the steps: replicas
          that cut the optimizer's state among them (`zero_stage` 1), gradients too (2), weights too (3). None: torch
          itself.
        - `tp_plan`: module names, with * for a part, and how each is cut: "colwise", "rowwise", "colwise_gather",
          "embedding", "sequence" or a torch ParallelStyle. None: the model's own plan, or one for its MLPs.
        - `pp_schedule`: "1f1b", "gpipe", or "interleaved" (two stages a process).
        - `pp_stages`: the modules at which each stage but the first begins; None: stages with even parameters.
        - `compression`: how gradients go between replicas: None (as they are), "bf16", "fp16", `headrace.power_sgd()`
          or `headrace.top_k()`.
        - `activation_checkpointing`: the model's repeated blocks make their activations again in the backward pass: all
          of them ("full"), or all but products of matrices, convolutions and attention ("selective").
        - `compile`: blocks of one shape, else the model, run through torch.compile; the first step takes long.
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
          rank writes.
        - `guards`: what is watched for and answered during the run: `headrace.Guards()`; None: nothing, and a loss that
          is not finite is an error.
        - `alarms`: what rings while the run is under way, and whom it tells: `headrace.Alarms()`; None: nothing.
        - `profile`: (100, 110) has the steps 100 to 109 traced by torch's profiler, on rank 0 or, with
          `profile_all_ranks`, on all; at most 1,000.
        - `sinks`: where the run's events go, too: `headrace.TensorBoard()`, `Prometheus`, `MLflow`, `WandB`, or names
          such as "tensorboard" and "prometheus:9464". One that fails is told, and the run goes on without it.
        - `hang_timeout_sec`: a step of several processes that takes longer ends all of them, with a report of who hangs
          where; the first step, a batch of an evaluation and a checkpoint may take three times as long. None: never.
        - `save_frozen=False`: checkpoints leave out parameters that are not trained, and a run goes on from one only if
          they are the same again (their hash is in it): for adapters beside a large model.
        - `device`: None takes this process's GPU, or the CPU where there is none.
        """
        self._options = Options(
            loss=loss,
            inputs=inputs,
            optimizer=optimizer,
            schedule=schedule or Constant(),
            mesh=mesh,
            engine=engine,
            zero_stage=zero_stage,
            tp_plan=tp_plan,
            pp_schedule=pp_schedule,
            pp_stages=pp_stages,
            precision=precision,
            compression=compression,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
            micro_batch_size=micro_batch_size,
            evaluate=evaluate,
            evaluate_every=evaluate_every,
            metrics=dict(metrics or {}),
            clip_grad_norm=clip_grad_norm,
            ema=EMA(ema) if isinstance(ema, float | int) else ema,
            epochs=epochs,
            steps=steps,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
            keep_best=BestRule.parse(keep_best),
            checkpoints=checkpoints,
            checkpoint_async=checkpoint_async,
            guards=guards,
            alarms=alarms,
            save_frozen=save_frozen,
            hang_timeout_sec=hang_timeout_sec,
            seed=seed,
            device=device,
        )
        check_options(self._options)
        self.model = model
        self.loader = loader
        self.run_dir = Path(run_dir) if run_dir is not None else None
        self.profile = Profile.of(profile, profile_all_ranks)
        """Which steps are traced; None: none."""
        self.sinks = sinks_of(sinks)
        """Where the run's events go beside its folder."""
        self.config: dict[str, Any] = {}
        """What else the record of the run should say of it; JSON values."""
        self.tell_hang: Callable[[Failure], None] = print_failure
        """What the watchdog does with its verdict, before it ends this process."""
        self.stop_after_sec: float | None = None
        """How long `fit` makes steps, in seconds; then it stops as if it was told to. None: as long as it takes."""
        self.told_to_stop = False
        """Whether this process itself, and not only another rank, was asked to stop while it was fitting."""
        self._parts: Parts | None = None
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
        parts = self._parts = self._parts or set_up(self.model, self.loader, self._options)
        plan = self._plan(*((epochs, steps) if epochs or steps else (self._options.epochs, self._options.steps)))
        archive = self._archive(parts.learner)
        watchdog = Watchdog(parts.world, self.run_dir, self._options.hang_timeout_sec, self.tell_hang)
        with archive.held(), StopRequest() as request:
            # Not watched: reading a large checkpoint makes no progress that could be seen, and takes what it takes.
            resumed = self._go_on(parts.world, archive, resume)
            with watchdog as pulse:
                result = self._run(parts, plan, archive, resumed, request, pulse, began)
            self.told_to_stop = request.requested
            return result

    def change(self, loader: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Change options of the Trainer, and of its `headrace.Loader`, before the first `fit`.

        Raises OptionError for what does not exist or does not work, and afterwards.
        """
        if self._parts is not None:
            raise OptionError("options are changed before the first fit: make another Trainer")
        names = {field.name for field in fields(self._options)}
        if unknown := options.keys() - names:
            raise OptionError(f"Trainer has no option {', '.join(sorted(unknown))}")
        self._options = replace(self._options, **options)
        check_options(self._options)
        if loader:
            if not hasattr(self.loader, "with_options"):
                raise OptionError(f"options of a headrace.Loader can be changed: got a {type(self.loader).__name__}")
            self.loader = self.loader.with_options(**loader)

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model has the averaged weights, once `fit` was called; afterwards its own again.

        Raises OptionError without `ema`. On every process where parameters are sharded.
        """
        parts = self._parts
        if parts is None or parts.average is None:
            raise OptionError("averaged weights are there once fit was called with ema: set Trainer(ema=0.999), say")
        return _in_place(parts.average, parts.learner)

    def _run(
        self,
        parts: Parts,
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
            self._ringing(record),
            HostMeter(record.write) if isinstance(record, EventWriter) else nullcontext(),
            SkippedList(self.run_dir, rank, self.loader) as skipped,
            feed_sinks(self.sinks, self.run_dir, record, self._options.hang_timeout_sec),
        ):
            journal = Journal(record, skipped)
            self._announce(journal, parts, plan, resumed)
            self._whole = False
            loop = self._loop(parts, plan, archive, journal, pulse)
            if self.stop_after_sec is not None:
                request.after(self.stop_after_sec)
            with self._tracing(loop, rank, record):
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

    def _loop(self, parts: Parts, plan: Plan, archive: Archive, journal: Journal, pulse: Pulse) -> Loop:
        return Loop(
            plan,
            self._position,
            parts.world,
            self.model,
            self.loader,
            parts.stepper,
            self._options.schedule,
            parts.evaluator,
            archive,
            journal,
            self._watch(parts, journal),
            pulse,
            self._flops(parts),
        )

    def _flops(self, parts: Parts) -> FlopCount:
        world, options = parts.world, self._options
        counts = may_count(options, parts.mesh) and self.run_dir is not None
        return FlopCount(counts, peak_flops(options.precision, world.device), world.size)

    def _ringing(self, record: Record) -> AbstractContextManager[object]:
        alarms = self._options.alarms
        return Watcher(alarms, record) if alarms is not None and isinstance(record, EventWriter) else nullcontext()

    def _tracing(self, loop: Loop, rank: int, record: Record) -> AbstractContextManager[object]:
        if self.run_dir is None:
            return nullcontext()
        due = self.profile if self.profile is not None and (rank == 0 or self.profile.all_ranks) else None
        folder = self.run_dir / PROFILES
        return Tracer(folder, rank, loop._clock, lambda: self._position.step, due, partial(_keep_profile, record))

    def _watch(self, parts: Parts, journal: Journal) -> Watch | None:
        guards = self._options.guards
        return None if guards is None else Watch(guards, parts.learner, journal.guard, journal.ranks)

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
            if self.sinks:
                raise OptionError("sinks are fed from what the run writes into its folder: set run_dir")
            for name in ("checkpoint_every", "keep_best", "checkpoints", "checkpoint_async", "alarms"):
                if getattr(self._options, name) not in (None, False):
                    raise OptionError(f"{name} needs a place for what the run keeps: set run_dir")
            if self.profile is not None:
                raise OptionError("profile needs a place for what the run keeps: set run_dir")
        total_steps = steps or (epochs or 0) * per_epoch
        if self.profile is not None:
            self.profile.check_within(total_steps)
        return Plan(
            total_steps=total_steps,
            steps_per_epoch=per_epoch,
            evaluate_every=max(1, round(self._options.evaluate_every * per_epoch)),
            checkpoint_every=self._options.checkpoint_every,
        )

    def _archive(self, learner: Learner) -> Archive:
        if self._archived is not None and self._archived.run_dir == self.run_dir:
            return self._archived  # it knows what was the best
        options = self._options
        keeping = Keeping(options.keep_checkpoints, options.keep_best, options.checkpoints, options.checkpoint_async)
        self._archived = Archive(
            self.run_dir, learner, self.loader, keeping, seed=self._options.seed, config=self._config
        )
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
        seed_all(self._options.seed, resolve_rank().rank)
        return None

    def _announce(self, journal: Journal, parts: Parts, plan: Plan, resumed: Resumed | None) -> None:
        journal.start(
            attempt=num_restarts(),
            world_size=parts.world.size,
            pids=parts.world.gather(os.getpid()),
            step=self._position.step,
            resumed_from=str(resumed.path) if resumed else None,
            total_steps=plan.total_steps,
            mesh=str(parts.mesh),
            precision=self._options.precision,
            global_batch_size=self.loader.global_batch_size,
            data=self.loader.state_dict().get("order"),  # which samples, and what decides their order
            config=self._config(),
        )

    def _config(self) -> dict[str, Any]:
        layers = () if self._parts is None else self._parts.float8_layers
        found: dict[str, Any] = {"float8_layers": list(layers)} if layers else {}
        if (loader := getattr(self.loader, "options", None)) is not None:
            found["loader"] = loader
        if self.sinks:
            found["sinks"] = [sink.name for sink in self.sinks]
        return {**self._options.described(self.model), **found, **self.config}

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


def _keep_profile(record: Record, written: Written) -> None:
    print(f"profile {written.path}: {written.sentence}", file=sys.stderr, flush=True)
    steps = {"step": written.last_step, "first_step": written.first_step}
    record.write("profile", **steps, path=str(written.path), sentence=written.sentence)


@contextmanager
def _in_place(average: Average, learner: Learner) -> Iterator[None]:
    """The average in place of the weights. A forward pass without a backward pass leaves parameters gathered, with the
    values of that moment, so they are let go before and afterwards.
    """
    learner.distributed.settle()
    try:
        with average.in_place():
            yield
    finally:
        learner.distributed.settle()
