"""Other libraries in torch's place: what `Trainer(engine=)` may name.

An engine is a module here with the functions of `Engine`; its library is imported when a run begins. Horovod averages
gradients only; DeepSpeed cuts model and optimizer, and makes the steps. Loop and checkpoints stay ours.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from headrace.errors import OptionError
from headrace.train.engines import deepspeed, horovod
from headrace.train.engines.deepspeed import DEFAULT_STAGE, PartitionedLearner, PartitionedStepper, Zero
from headrace.train.options import Options
from headrace.train.parallel import Distributed
from headrace.train.world import World

__all__ = ["PartitionedLearner", "PartitionedStepper", "Zero", "check_engine", "chosen_engine"]


class Engine(Protocol):
    """What a run asks of an engine."""

    def check(self, options: Options) -> None:
        """Raise OptionError for options that cannot work with it."""

    def meet(self) -> None:
        """Called before the processes join torch.distributed: describe their group, if the engine's launcher did not.

        Raises OptionError where its library is missing.
        """

    def distribute(self, model: nn.Module, world: World, options: Options) -> Distributed:
        """Give the model, which is on its device, its place. Collective; before its optimizer is made."""


ENGINES: dict[str, Engine] = {"deepspeed": deepspeed, "horovod": horovod}


def check_engine(options: Options) -> None:
    """Raise OptionError for an engine that there is not, or one that cannot work with the other options."""
    if options.engine != "deepspeed" and options.zero_stage != DEFAULT_STAGE:
        raise OptionError(
            f"zero_stage is for engine='deepspeed': got zero_stage={options.zero_stage!r} and engine="
            f"{options.engine!r}; set both, or leave it away"
        )
    if options.engine is None:
        return
    if options.engine not in ENGINES:
        raise OptionError(f"engine must be None, or one of {', '.join(ENGINES)}: got {options.engine!r}")
    ENGINES[options.engine].check(options)


def chosen_engine(options: Options) -> Engine | None:
    """The one that checked options name; None: torch itself."""
    return None if options.engine is None else ENGINES[options.engine]
