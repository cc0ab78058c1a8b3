"""The pass: finds out what each channel is and who needs it, then writes the graph without the rest."""

from collections.abc import Mapping

from torch import Tensor, fx

from slimfast.graph.builder import Builder
from slimfast.graph.channels import Call
from slimfast.graph.rules import Rulebook
from slimfast.graph.rules.rule import Rule
from slimfast.graph.trace import assemble, drop_unused


def shrink(traced: fx.GraphModule, retained: Mapping[str, Tensor]) -> fx.GraphModule:
    """The traced network without channels that are constant or that nobody needs; its outputs are the same.

    Eval outputs are equal to rounding at any batch and image size. Outputs in train mode are too, if no
    filter is exactly zero in front of a BatchNorm and no dropout sees a constant.

    Args:
        traced: from `trace`; used up: its modules are narrowed and taken over.
        retained: BatchNorm name to bool [C], channels that stay although their scale is 0.

    Returns:
        A graph module in which modules and parameters have their old names.

    Source: DESIGN.md, section 5.
    """
    rules = Rulebook(traced)
    calls = _forward(traced, rules, retained)
    _backward(calls)
    builder = Builder(traced)
    for call, rule in calls:
        if call.wanted is not None or call.node.op == "placeholder":
            builder.begin(call)
            call.value = rule.emit(call, builder)
    builder.graph.lint()
    pruned = assemble(traced, builder.graph, type(traced).__name__)
    drop_unused(pruned)
    return pruned


def _forward(
    traced: fx.GraphModule, rules: Rulebook, retained: Mapping[str, Tensor]
) -> list[tuple[Call, Rule]]:
    """Every call in order, with the rule that holds for it and the facts about its channels."""
    modules = dict(traced.named_modules(remove_duplicate=False))
    found: dict[fx.Node, Call] = {}
    calls = []
    for node in traced.graph.nodes:
        called = str(node.target) if node.op == "call_module" else None
        module = modules[called] if called is not None else None
        call = Call(node, module, [found[source] for source in node.all_input_nodes])
        call.retained = retained.get(called) if called is not None else None
        rule = rules.rule(call)
        call.facts = rule.facts(call)
        found[node] = call
        calls.append((call, rule))
    return calls


def _backward(calls: list[tuple[Call, Rule]]) -> None:
    """Fills in `wanted`, from the output of the model to its inputs."""
    for call, rule in reversed(calls):
        if call.node.op == "output":
            call.want(call.facts.live)
        if call.wanted is not None:
            for source, demand in zip(call.inputs, rule.demands(call), strict=True):
                source.want(demand)
