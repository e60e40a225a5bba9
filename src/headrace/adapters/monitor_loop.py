"""The record of a loop of one's own under Accelerate or Lightning Fabric, told by what the loop calls anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

from torch.optim import Optimizer

from headrace.adapters.following import FollowedStep
from headrace.adapters.in_place import replaced
from headrace.adapters.monitor import Monitor
from headrace.errors import OptionError

B = TypeVar("B")


def follow(monitor: Monitor, owner: Any, loader: Iterable[B], optimizer: Any) -> Iterator[B]:
    """The loader's batches; each step of the optimizer is recorded as a step, with its parts, loss and learning rate.

    A step begins with its first batch and ends with the optimizer's step, so with accumulation it has several batches.
    Waiting is the `next` of the loader within the one that `prepare` or `setup_dataloaders` made, and copying what that
    one does itself. `loss` is what was given to `owner.backward`, the mean over the step's batches, on rank 0. Evaluate
    after the optimizer's step, and say so by `monitor.evaluated`. For one iteration, in one thread.

    Args:
        monitor: of the run.
        owner: the `accelerate.Accelerator` or `lightning.Fabric`, whose `backward` the loop calls.
        loader: what the loop would iterate: as `prepare` or `setup_dataloaders` returned it.
        optimizer: the one whose step ends a step; as they returned it, or PyTorch's own.

    Raises OptionError for other arguments.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not callable(getattr(owner, "backward", None)) or not isinstance(inner, Optimizer):
        shown = f"{type(owner).__name__} and {type(optimizer).__name__}"
        raise OptionError(f"follow is for an Accelerator or a Fabric, and an optimizer of PyTorch's: got {shown}")
    return _followed(monitor, owner, loader, inner)


def _followed(monitor: Monitor, owner: Any, loader: Iterable[B], optimizer: Optimizer) -> Iterator[B]:
    step = FollowedStep(monitor)
    losses: list[Any] = []

    def backward(method: Callable[..., Any], loss: Any, *arguments: Any, **named: Any) -> Any:
        losses.append(loss)
        with step.backward():
            return method(loss, *arguments, **named)

    def end(*_: Any) -> None:
        step.optimizer_done()
        for loss in losses:
            step.add_loss(loss / len(losses))
        losses.clear()
        step.end()

    with ExitStack() as undo:
        undo.callback(step.drop)  # batches at the end that made no step, or one that failed
        undo.enter_context(replaced(owner, "backward", backward))
        undo.callback(optimizer.register_step_pre_hook(lambda *_: step.optimizing(optimizer)).remove)
        undo.callback(optimizer.register_step_post_hook(end).remove)
        for batch in monitor.watch(loader):
            step.begin()
            yield batch
