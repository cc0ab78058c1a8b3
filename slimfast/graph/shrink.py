"""The pass: finds out what each channel is and who needs it, then writes the graph without the rest."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call, Cut
from slimfast.graph.normalise import normalise
from slimfast.graph.rules import Rulebook, keeps_channels
from slimfast.graph.trace import assemble, drop_unused


@dataclass(frozen=True)
class Shrunk:
    """What `shrink` returns.

    Attributes:
        model: a graph module in which modules and parameters have their old names.
        cuts: by name, which numbers of each parameter and buffer are left; others are as they were.
        calls: the calls of the traced network, and what was found out about each.
    """

    model: fx.GraphModule
    cuts: dict[str, Cut]
    calls: list[Call]


def shrink(traced: fx.GraphModule, retained: Mapping[str, Tensor]) -> Shrunk:
    """The traced network without channels that are constant or that nobody needs; its outputs are the same.

    Eval outputs are equal to rounding at any batch and image size. Outputs in train mode are too, if no
    filter is exactly zero in front of a BatchNorm and no dropout sees a constant.

    Args:
        traced: from `trace`; used up: its modules are narrowed and taken over.
        retained: BatchNorm name to bool [C], channels that stay although their scale is 0.

    Source: DESIGN.md, section 5.
    """
    normalise(traced, lambda node: keeps_channels(traced, node))
    calls = _calls(traced, retained)
    _forward(traced, calls)
    _backward(calls)
    builder = Builder(traced)
    for call in calls:
        if call.wanted is not None or call.node.op == "placeholder":
            builder.begin(call)
            value = call.rule.emit(call, builder)
            known = (
                ~call.facts.live & ~value.held
            )  # also a constant that the input held and the call left out
            call.value = replace(value, offset=torch.where(known, call.facts.value, value.offset))
    builder.graph.lint()
    pruned = assemble(traced, builder.graph, type(traced).__name__)
    drop_unused(pruned)
    return Shrunk(pruned, builder.cuts, calls)


def _calls(traced: fx.GraphModule, retained: Mapping[str, Tensor]) -> list[Call]:
    """Every call in order; calls of one module know each other."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    found: dict[fx.Node, Call] = {}
    siblings: dict[int, list[Call]] = defaultdict(list)
    for node in traced.graph.nodes:
        called = str(node.target) if node.op == "call_module" else None
        inputs = [found[source] for source in node.all_input_nodes]
        varies = node.op == "placeholder" or any(source.varies for source in inputs)
        call = Call(node, modules[called] if called is not None else None, inputs, varies)
        call.retained = retained.get(called) if called is not None else None
        if call.module is not None and (*call.module.parameters(), *call.module.buffers()):
            call.siblings = siblings[id(call.module)]
            call.siblings.append(call)
        found[node] = call
    return list(found.values())


def _forward(traced: fx.GraphModule, calls: list[Call]) -> None:
    """Fills in rules and facts, from the inputs of the model to its output."""
    rules = Rulebook(traced)
    for call in calls:
        call.rule = rules.rule(call)
        call.facts = call.rule.facts(call)


def _backward(calls: list[Call]) -> None:
    """Fills in `wanted`, from the output of the model to its inputs, until calls of one module agree."""
    disagree = True
    while disagree:
        for call in reversed(calls):
            if call.node.op == "output":
                call.want(call.facts.live)
            if call.wanted is not None:
                for source, demand in zip(call.inputs, call.rule.demands(call), strict=True):
                    source.want(demand)
        disagree = bool([call for call in calls if call.is_shared and _agree(call)])


def _agree(call: Call) -> bool:
    """Wants what any call of the same module wants; whether that is more than before."""
    before = call.wanted
    if not call.wants_contents or len({sibling.count for sibling in call.siblings}) > 1:
        return False
    for sibling in call.siblings:
        if sibling.wants_contents:
            call.want(sibling.wanted)
    assert before is not None
    assert call.wanted is not None
    return bool((call.wanted & ~before).any())
