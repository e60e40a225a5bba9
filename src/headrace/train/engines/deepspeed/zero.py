"""DeepSpeed's ZeRO: replicas that cut the optimizer's state (stage 1), gradients too (2), weights too (3).

DeepSpeed gathers weights, reduces gradients, clips and steps. Everything that it would take from a configuration file
and that the Trainer has too is set here, so that nothing is done twice: its own clipping is the one that clips, micro-
batches and their weights are ours, and its factor for scaled losses is what corrects gradients of unequal batches.
"""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import Optimizer

from headrace.errors import OptionError, StateError
from headrace.train.engines.deepspeed.checks import check_parameters
from headrace.train.engines.deepspeed.partitions import STAGE_3, Partitions
from headrace.train.optimizers import built
from headrace.train.options import Options
from headrace.train.parallel import NOTHING, Exposed, recompute_activations, share
from headrace.train.world import World, leave_world


class Zero:
    """The model as a rank trains it: DeepSpeed's engine around the user's module."""

    needs_equal_passes = True
    """Gradients are reduced in every backward pass, and weights may be gathered in every forward pass."""

    def __init__(
        self, model: nn.Module, engine: Any, optimizer: PartitionedOptimizer, stage: int, gathered: Callable[..., Any]
    ) -> None:
        """`gathered`: DeepSpeed's context in which parameters are whole."""
        self.model = model
        self.module: nn.Module = engine
        self.optimizer = optimizer
        self.cuts_weights = stage == STAGE_3
        self._engine = engine
        self._gathered = gathered

    @contextmanager
    def reducing(self, reduce: bool) -> Iterator[None]:
        """Whether the backward pass inside is the last of a step."""
        self._engine.set_gradient_accumulation_boundary(reduce)
        yield

    def settle(self) -> None:
        """After forward passes that no backward pass follows: each layer has let go of its weights."""

    def end_backward(self) -> None:
        """Nothing is measured: gathering and reducing lie within the passes."""

    def exposed(self) -> Exposed:
        """Not known apart from compute."""
        return NOTHING

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes rank 0's values. Collective."""
        share(tensors)

    def weights(self, param: nn.Parameter) -> Tensor:
        """All of a parameter's values, as a tensor cut over the ranks. Collective."""
        with self._gathered([param]):
            return self.optimizer.partitions.cut(param.detach())

    def set_weights(self, param: nn.Parameter, values: Tensor) -> None:
        """Give a parameter these values, the same on every rank. Collective."""
        with self._gathered([param], modifier_rank=0), torch.no_grad():
            param.copy_(values)


class PartitionedOptimizer(Optimizer):
    """The optimizer as the Trainer sees it: groups of the model's parameters, with the rates of the next step.

    The user's optimizer, inside DeepSpeed's, has this rank's partitions instead.
    """

    def __init__(self, engine: Any, own: Optimizer, groups: list[dict[str, Any]], partitions: Partitions) -> None:
        """`groups`: those of `own`, before DeepSpeed took it."""
        super().__init__(groups, {})
        self.own = own
        self.partitions = partitions
        self.correction = 1.0
        """By what the gradients of the next step are divided."""
        self.norm = torch.zeros(())
        """Of all gradients of the last step together, before clipping; infinite where they were not finite."""
        self._engine = engine

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step, unless gradients are not finite. Collective; takes no closure."""
        assert closure is None
        for group, partitioned in zip(self.param_groups, self.own.param_groups, strict=True):
            partitioned["lr"] = group["lr"]
        zero = self._engine.optimizer
        zero.loss_scale = self.correction
        self._engine.step()
        zero.loss_scale = self.correction = 1.0
        device = self.param_groups[0]["params"][0].device
        self.norm = torch.as_tensor(self._engine.get_global_grad_norm(), device=device)

    def values(self, param: nn.Parameter) -> dict[str, Any]:
        """What is kept of a parameter by its key: tensors of its partition's length, and what is one for all of it."""
        found: dict[str, Any] = self.own.state.get(self.partitions.piece(param).flat, {})
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from state of whole parameters: number of a parameter -> key -> value. Collective."""
        params = [param for group in self.param_groups for param in group["params"]]
        saved: dict[int, dict[str, Any]] = state_dict["state"]
        self._engine.optimizer.refresh_fp32_params()
        self.own.state.clear()
        for number, param in enumerate(params):
            flat = self.partitions.piece(param).flat
            kept = self.own.state[flat]
            for key, value in saved.get(number, {}).items():
                if isinstance(value, Tensor) and value.dim():
                    room = kept.setdefault(key, torch.zeros_like(flat, requires_grad=False))
                    self.partitions.fill(param, room, value)
                elif kept.setdefault(key, _placed(value, flat)) != value:
                    raise StateError(
                        f"parameters that ZeRO lays end to end must have one {key!r}: got {kept[key]} and {value}; "
                        "go on without engine='deepspeed'"
                    )


def distribute(model: nn.Module, world: World, options: Options) -> Zero:
    """Have DeepSpeed take the model, which is on its device, and its optimizer. Collective.

    Raises OptionError for parameters that DeepSpeed cannot take, and for an optimizer that it makes anew.
    """
    check_parameters(model)
    own = built(options.optimizer, model)
    if isinstance(own, torch.optim.Adagrad):
        raise OptionError("engine='deepspeed' loses Adagrad's parameter groups: take adamw() or sgd()")
    recompute_activations(model, options.activation_checkpointing)
    with torch.no_grad():
        share([*model.parameters(), *model.buffers()])
    groups = [{**group, "params": list(group["params"])} for group in own.param_groups]
    shapes = {param: param.shape for group in groups for param in group["params"]}
    devices = _devices(world)
    deepspeed = _deepspeed(world)
    with _quietly():
        engine = deepspeed.initialize(model=model, optimizer=own, config=_config(options))[0]
    partitions = Partitions(engine.optimizer, options.zero_stage, shapes, devices)
    optimizer = PartitionedOptimizer(engine, own, groups, partitions)
    return Zero(model, engine, optimizer, options.zero_stage, deepspeed.zero.GatheredParameters)


def _config(options: Options) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # samples and micro-batches are counted, and weighted, by the step
        "gradient_accumulation_steps": 1,
        "gradient_clipping": options.clip_grad_norm or 0.0,  # the default clips at 1
        "zero_optimization": {"stage": options.zero_stage},
        "zero_allow_untested_optimizer": True,
        # Autocast alone: with modules in this list their gradients would be added up in bf16.
        "torch_autocast": {
            "enabled": options.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def _devices(world: World) -> DeviceMesh:
    """All processes in a row; DeepSpeed needs a process group of one, too."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
        atexit.register(leave_world)
    return init_device_mesh(world.device.type, (world.size,))


def _deepspeed(world: World) -> Any:
    """The library, made ready for this device at its first import."""
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.device.index or 0))  # which it asks for where no launcher set it
    import deepspeed

    # Sums through shared memory would be compiled at the first start, and a killed process leaves locks and memory
    # behind; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _quietly() -> Iterator[None]:
    """DeepSpeed warns of every optimizer that is not its own, and torch of collectives that DeepSpeed calls."""
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*` is deprecated", category=FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _placed(value: Any, flat: Tensor) -> Any:
    return value.to(flat.device) if isinstance(value, Tensor) else value
