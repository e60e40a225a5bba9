"""Which linear layers form an MLP that processes can share: found by following the values, not by names.

The outputs of a layer A may be cut among processes, each going on with its own, if everything up to the next layer B
works on every output alone: B then sums up products over its inputs, of which each process has some. So a pair is one
between whose layers there are only element-wise functions; a gated MLP has two layers before one.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

_MODULES = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.ELU,
    nn.LeakyReLU,
    nn.Hardswish,
    nn.Softplus,
    nn.Dropout,
    nn.Identity,
)
_FUNCTIONS = (
    *(
        functional.relu,
        functional.gelu,
        functional.silu,
        functional.mish,
        functional.tanh,
        functional.sigmoid,
        functional.elu,
        functional.leaky_relu,
        functional.hardswish,
        functional.softplus,
        functional.dropout,
    ),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.mul, torch.square, operator.mul, operator.imul),
)
_METHODS = ("relu", "tanh", "sigmoid", "mul", "square", "float", "to", "type_as", "contiguous")


@dataclass(frozen=True, slots=True)
class MLP:
    """Linear layers by their names in the model: outputs of `first` are combined alone and go into `last`."""

    first: tuple[str, ...]
    last: str


def find_mlps(model: nn.Module) -> list[MLP]:
    """All there are in modules whose forward pass torch.fx can follow."""
    found: list[MLP] = []
    for name, module in model.named_modules():
        if _may_have_mlp(module):
            for mlp in _in_module(name, module):
                if not _known(mlp, found):
                    found.append(mlp)
    return found


def _known(mlp: MLP, found: list[MLP]) -> bool:
    taken = {name for other in found for name in (*other.first, other.last)}
    return not taken.isdisjoint((*mlp.first, mlp.last))


def _may_have_mlp(module: nn.Module) -> bool:
    """Whether it has linear layers of its own, and is what its class says."""
    return sum(isinstance(child, nn.Linear) for child in module.children()) > 1 and "forward" not in vars(module)


def _in_module(name: str, module: nn.Module) -> list[MLP]:
    try:
        graph = _Tracer().trace(module)
    except Exception:  # the forward pass is the user's: whatever it raises for a stand-in, it cannot be followed
        return []
    modules = dict(module.named_modules())
    linear = [node for node in graph.nodes if isinstance(_module(node, modules), nn.Linear)]
    calls = [node.target for node in linear]
    once = {node for node in linear if calls.count(node.target) == 1}
    prefix = f"{name}." if name else ""
    found = []
    for node in (node for node in graph.nodes if node in once):
        sources = _sources(node.args[0], modules)
        if sources and sources <= once and _lead_only_to(sources, node, modules):
            first = tuple(sorted(f"{prefix}{source.target}" for source in sources))
            found.append(MLP(first, f"{prefix}{node.target}"))
    return found


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Everything below is called as a whole: it has its own turn."""
        return True


def _sources(node: Any, modules: dict[str, nn.Module]) -> set[fx.Node] | None:
    """The linear layers whose outputs, changed one by one, make up this value; None: something else is in it."""
    if not isinstance(node, fx.Node):
        return None
    if isinstance(_module(node, modules), nn.Linear):
        return {node}
    if not _is_elementwise(node, modules):
        return None
    found: set[fx.Node] = set()
    for argument in node.all_input_nodes:
        sources = _sources(argument, modules)
        if sources is None:
            return None
        found |= sources
    return found


def _lead_only_to(sources: set[fx.Node], end: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether nobody else sees what comes from the sources."""
    left = [user for source in sources for user in source.users]
    seen: set[fx.Node] = set()
    while left:
        node = left.pop()
        if node is end or node in seen:
            continue
        if not _is_elementwise(node, modules):
            return False
        seen.add(node)
        left += node.users
    return True


def _is_elementwise(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(_module(node, modules)) in _MODULES
    if node.op == "call_function":
        return node.target in _FUNCTIONS
    return node.op == "call_method" and node.target in _METHODS


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None
