"""Cutting a model into stages: parts of its forward pass that follow one another, with one value handed on between.

The forward pass is written down by torch.fx, blocks and torch's own layers as they are, so a model need not be a
Sequential. Stages keep the module's names for their parameters. Where a stage may begin follows from the values: before
a layer that needs no more of what came before than one tensor. Among these places the cut is the one whose largest
stage has the fewest parameters, unless the user names the modules at which stages begin.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import fx, nn

from headrace.errors import OptionError, TrainingError
from headrace.train.parallel.blocks import repeated_blocks


def cut_stages(model: nn.Module, num_stages: int, starts: Sequence[str] | None = None) -> list[fx.GraphModule]:
    """The stages, in order; their layers are the model's own. Raises OptionError for a model that cannot be cut."""
    graph = _traced(model)
    _check_used(graph, model)
    places = _places(graph)
    chosen = _even(graph, places, model, num_stages) if starts is None else _named(graph, places, starts, num_stages)
    _check_shared(graph, chosen, model)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    bounds = [0, *(nodes.index(node) for node in chosen), len(nodes)]
    return [_stage(model, graph, nodes[first:last]) for first, last in pairwise(bounds)]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else what is computed of a buffer would be a constant of the stage

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self._blocks = {id(block) for block in blocks}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A linear layer of another library's (in float8, say) is as much a layer as torch's own.
        return id(m) in self._blocks or isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.Graph:
    try:
        graphs = [_Tracer(repeated_blocks(model)).trace(model.train(mode)) for mode in (False, True)]
    except Exception as err:  # the forward pass is the user's: it may raise anything for a stand-in
        raise OptionError(
            f"pipeline stages need a forward pass that torch.fx can follow outside the repeated blocks: {err}; make "
            "the model a Sequential, or move what depends on values or shapes into a module of its own that repeats"
        ) from err
    evaluated, trained = (re.sub(r"_tensor_constant\d+", "constant", str(graph)) for graph in graphs)
    if evaluated != trained:
        raise OptionError(
            "pipeline stages need a forward pass that does not ask for self.training outside the repeated blocks: this "
            "one differs between training and evaluation; use modules (nn.Dropout) in place of functions"
        )
    return graphs[1]


def _check_used(graph: fx.Graph, model: nn.Module) -> None:
    """What no stage has would be lost."""
    used = {id(tensor) for node in graph.nodes for _, tensor in _tensors(node, model)}
    unused = [name for name, param in model.named_parameters() if id(param) not in used]
    if unused:
        raise TrainingError(
            f"on several processes every parameter must take part in the loss: {', '.join(unused[:5])} got no "
            "gradient, being in no stage of the pipeline; use it, or remove it"
        )


def _places(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Where a stage may begin: a layer, and the one value that it and all after it need of what came before."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    last_use = {
        node: max((order[user] for user in node.users), default=-1) for node in graph.nodes if node.op != "get_attr"
    }
    found = {}
    for node in graph.nodes:
        alive = [one for one in last_use if order[one] < order[node] <= last_use[one]]
        if node.op == "call_module" and len(alive) == 1 and alive[0].op != "placeholder":
            found[node] = alive[0]
    return found


def _even(graph: fx.Graph, places: dict[fx.Node, fx.Node], model: nn.Module, num_stages: int) -> list[fx.Node]:
    """The beginnings of all stages but the first that make the largest stage smallest, in parameters."""
    order = [node for node in graph.nodes if node.op == "call_module"]
    sizes = [sum(param.numel() for param in model.get_submodule(str(node.target)).parameters()) for node in order]
    allowed = [0, *(number for number, node in enumerate(order) if node in places), len(order)]
    if len(allowed) - 1 < num_stages:
        raise OptionError(
            f"a pipeline of {num_stages} stages needs as many layers one after the other: this model can be cut into "
            f"{len(allowed) - 1}; take fewer stages"
        )
    sums = [sum(sizes[:number]) for number in range(len(order) + 1)]

    @cache
    def best(end: int, stages: int) -> tuple[int, tuple[int, ...]]:
        """The largest of `stages` stages up to place `end`, and where they begin."""
        if stages == 1:
            return sums[allowed[end]], ()
        found = []
        for begin in range(stages - 1, end):
            largest, begins = best(begin, stages - 1)
            found.append((max(largest, sums[allowed[end]] - sums[allowed[begin]]), (*begins, begin)))
        return min(found)

    return [order[allowed[number]] for number in best(len(allowed) - 1, num_stages)[1]]


def _named(graph: fx.Graph, places: dict[fx.Node, fx.Node], starts: Sequence[str], num_stages: int) -> list[fx.Node]:
    if len(starts) != num_stages - 1:
        raise OptionError(
            f"pp_stages names the module at which each stage but the first begins, {num_stages - 1} here: "
            f"got {', '.join(starts) or 'none'}"
        )
    known = {str(node.target): node for node in places}
    wrong = [name for name in starts if name not in known]
    if wrong:
        raise OptionError(f"a stage cannot begin at {wrong[0]!r}: it can at {', '.join(known) or 'no module'}")
    chosen = [known[name] for name in starts]
    order = list(graph.nodes)
    if chosen != sorted(chosen, key=order.index) or len(set(starts)) != len(starts):
        raise OptionError(f"pp_stages must be in the order of the forward pass: got {', '.join(starts)}")
    return chosen


def _check_shared(graph: fx.Graph, chosen: list[fx.Node], model: nn.Module) -> None:
    """A parameter that two stages use would be two parameters."""
    owner: dict[int, tuple[int, str]] = {}
    stage = 0
    for node in graph.nodes:
        stage += node in chosen
        for name, tensor in _tensors(node, model):
            first, other = owner.setdefault(id(tensor), (stage, name))
            if first != stage:
                raise OptionError(
                    f"stages must not share parameters: {other} of stage {first} is {name} of stage {stage}; untie "
                    "them, or use a mesh without pp"
                )


def _tensors(node: fx.Node, model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The parameters that a node uses, with their names. One that is fetched for others counts with its users."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return [(f"{node.target}.{name}", param) for name, param in module.named_parameters()]
    found = []
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            prefix, _, name = str(source.target).rpartition(".")
            found.append((str(source.target), getattr(model.get_submodule(prefix), name)))
    return found


def _stage(model: nn.Module, whole: fx.Graph, nodes: list[fx.Node]) -> fx.GraphModule:
    """A module that computes these nodes of the whole forward pass."""
    inside = set(nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = {source for node in nodes for source in node.all_input_nodes if source not in inside}
    for node in whole.nodes:
        if node in needed and node.op != "get_attr":
            copies[node] = graph.placeholder(node.name)
    for node in (one for one in whole.nodes if one in inside or (one in needed and one.op == "get_attr")):
        copies[node] = graph.node_copy(node, lambda one: copies[one])
    (end,) = [node for node in whole.nodes if node.op == "output"]
    if any(source in inside for source in end.all_input_nodes):
        graph.node_copy(end, lambda one: copies[one])
    else:
        (out,) = [node for node in nodes if any(user not in inside for user in node.users)]
        graph.output(copies[out])
    stage = fx.GraphModule(model, graph)
    _forget_in_state(stage, set(model.state_dict()))
    stage.train(model.training)
    return stage


def _forget_in_state(stage: fx.GraphModule, names: set[str]) -> None:
    """torch.fx makes every tensor that it copies part of a module's state, also what the model keeps out of its own."""
    for prefix, module in stage.named_modules():
        for name in module._buffers:
            if f"{prefix}.{name}".lstrip(".") not in names:
                module._non_persistent_buffers_set.add(name)
