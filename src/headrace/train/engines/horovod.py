"""`engine="horovod"`: Horovod averages the gradients of replicas, each as soon as the backward pass has it.

All else, the few sums over ranks and checkpoints with them, goes over torch.distributed as ever. So there are two
groups of the same processes: under horovodrun torch's is described from Horovod's, else Horovod's from torch's.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headrace.errors import OptionError
from headrace.train.options import Options
from headrace.train.parallel.buffers import share
from headrace.train.parallel.distribute import prepare
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.mesh import parse_mesh
from headrace.train.world import World

_DTYPES = (torch.float16, torch.float32, torch.float64)
"""Of gradients that Horovod can add up."""


def check(options: Options) -> None:
    """Raise OptionError for a mesh of more than replicas, and for compression."""
    if set(parse_mesh(options.mesh)) != {"dp"}:
        raise OptionError(
            f"engine='horovod' works between replicas only: got mesh={options.mesh!r}; say mesh='dp', or leave engine "
            "out"
        )
    if options.compression is not None:
        raise OptionError(
            f"engine='horovod' sends gradients as they are: got compression={options.compression!r}; leave one of the "
            "two out"
        )


def meet() -> None:
    """Under horovodrun, join Horovod, and describe the same processes to torch.distributed as torchrun would."""
    hvd = _horovod()
    if "HOROVOD_RANK" not in os.environ:
        return
    hvd.init()
    if dist.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("", 0))
        own = os.environ.get("HOROVOD_HOSTNAME") or socket.gethostname(), free.getsockname()[1]
    address, port = hvd.broadcast_object(own, root_rank=0)
    described = {
        "RANK": hvd.rank(),
        "WORLD_SIZE": hvd.size(),
        "LOCAL_RANK": hvd.local_rank(),
        "LOCAL_WORLD_SIZE": hvd.local_size(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    for name, value in described.items():
        os.environ.setdefault(name, str(value))


def distribute(model: nn.Module, world: World, options: Options) -> Averaged:
    """Replicate the model. Collective.

    Raises OptionError for trained parameters of a dtype that Horovod does not add up.
    """
    for name, param in model.named_parameters():
        if param.requires_grad and param.dtype not in _DTYPES:
            raise OptionError(
                f"engine='horovod' adds up gradients of float16, float32 and float64: {name} is {param.dtype}; convert "
                "the model by model.float(), or leave engine out"
            )
    prepare(model, options.activation_checkpointing, options.compile)
    if world.size > 1:
        _join(world)
    return Averaged(model, world)


class Averaged:
    """The model as a rank trains it: itself, with a hook at each parameter. With one process there are no hooks."""

    needs_equal_passes = False
    """Only the last backward pass of a step reduces."""

    def __init__(self, model: nn.Module, world: World) -> None:
        """Every rank gets rank 0's parameters and buffers. Collective."""
        self.model = self.module = model
        self._on_host = world.device.type == "cpu"
        self._reduces = False
        self._flights: list[tuple[int, Tensor, Tensor]] = []
        self._handed_over = 0.0
        self._exposed = NOTHING
        self._trained: dict[str, nn.Parameter] = {}
        self._begun: set[str] = set()
        if world.size == 1:
            return
        self._hvd = _horovod()
        with torch.no_grad():
            share((*model.parameters(), *model.buffers()))
        self._trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
        for name, param in self._trained.items():
            param.register_post_accumulate_grad_hook(partial(self._begin, name))

    def _begin(self, name: str, param: Tensor) -> None:
        """Begin to average a gradient, under its name: Horovod brings together those that ranks have begun by then."""
        if self._reduces:
            self._begun.add(name)
            self._send(name, param)

    def _send(self, name: str, param: Tensor) -> None:
        assert param.grad is not None
        sent = param.grad.contiguous()  # Horovod takes no other; of a convolution with channels last it is a copy
        self._flights.append((self._hvd.allreduce_async_(sent, name=name, op=self._hvd.Average), sent, param.grad))
        self._handed_over = time.perf_counter()

    @contextmanager
    def reducing(self, reduce: bool) -> Iterator[None]:
        """Whether the backward pass inside reduces gradients (the last of a step) or only adds them up."""
        self._reduces = reduce
        try:
            yield
        finally:
            self._reduces = False  # a backward pass outside a step is its rank's own

    def settle(self) -> None:
        """After forward passes that no backward pass follows: nothing is to be put back."""

    def end_backward(self) -> None:
        """Wait until all gradients are averaged."""
        self._send_missing()
        flights, self._flights = self._flights, []
        for handle, sent, grad in flights:
            self._hvd.synchronize(handle)
            if sent is not grad:
                grad.copy_(sent)
        if flights and self._on_host:
            self._exposed = Exposed(time.perf_counter() - self._handed_over, to_the_end=True)

    def _send_missing(self) -> None:
        """What took no part in the last backward pass: others wait for it, and earlier passes may have had it."""
        missing = self._trained.keys() - self._begun
        self._begun.clear()
        for name in sorted(missing):
            param = self._trained[name]
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            self._send(name, param)

    def exposed(self) -> Exposed:
        """How long the last backward pass waited for its reduction; on a GPU not known apart from compute."""
        return self._exposed

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes rank 0's values. Collective."""
        share(tensors)


def _horovod() -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as err:
        raise OptionError(
            f"engine='horovod' needs Horovod, built for this torch: {str(err).splitlines()[0]}; docs/horovod.md says "
            "how to build it, or leave engine out"
        ) from err
    return hvd


def _join(world: World) -> None:
    """Join Horovod with the processes of torch.distributed, unless its own launcher had them do so. Collective."""
    hvd = _horovod()
    if not hvd.is_initialized():
        _meet_as_torch_did(hvd, world)
    if (hvd.rank(), hvd.size()) != (world.rank, world.size):
        raise OptionError(
            f"Horovod and torch.distributed must have the same ranks: got rank {hvd.rank()} of {hvd.size()} and rank "
            f"{world.rank} of {world.size}; start the processes by one launcher only"
        )


def _meet_as_torch_did(hvd: Any, world: World) -> None:
    """Do for these processes what horovodrun does: a server at which they meet, on rank 0, and each one's variables."""
    from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
    from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars

    machines = [len(list(ranks)) for _, ranks in groupby(world.gather(socket.gethostname()))]
    hosts = [HostInfo(f"machine{number}", num_ranks) for number, num_ranks in enumerate(machines)]
    slots = get_host_assignments(hosts, world.size)
    address, servers = os.environ.get("MASTER_ADDR", "localhost"), []

    def serve() -> int:
        servers.append(_server(address, slots))
        return int(servers[0].server_address[1])

    port = world.agree(serve)
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "")
    described = {**create_run_env_vars(address, [interface], port), **create_slot_env_vars(slots[world.rank])}
    os.environ.update({name: str(value) for name, value in described.items() if value})
    hvd.init()
    world.part()  # rank 0's server stays until everybody is in
    for server in servers:
        server.shutdown()
        server.server_close()


def _server(address: str, slots: Any) -> Any:
    """Horovod's own, but at one address only, where it listens to every network by itself."""
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    try:
        server = RendezvousHTTPServer((address, 0), RendezvousHandler, False)
    except OSError as err:
        raise OptionError(
            f"Horovod's processes meet where torch's do, and rank 0 cannot listen at MASTER_ADDR={address}: "
            f"{err.strerror}; set MASTER_ADDR to an address of rank 0's machine, or start them by horovodrun"
        ) from err
    server.init(slots)
    Thread(target=server.serve_forever, daemon=True).start()
    return server
