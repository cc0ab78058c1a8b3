"""Graphs of models whose Python code torch.fx cannot follow, by torch.export."""

import contextlib
import inspect
import io
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from slimfast.graph import aten
from slimfast.graph.errors import ExportError, place_in, place_of
from slimfast.graph.layers import layer_for
from slimfast.graph.leaves import leaf_calls, watching
from slimfast.graph.limits import Limits
from slimfast.graph.modes import evaluating
from slimfast.graph.trials import Trials
from slimfast.graph.writes import make_writes_plain
from slimfast.nn import SizeCheck

_TENSORS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def exported(model: nn.Module, arguments: Sequence[Any]) -> fx.Graph:
    """A graph over the modules of `model`, for any batch size, of what it does with such arguments.

    Python code is followed as in eval mode and for the sizes of the arguments. Where the model's code asks
    about a size, a `SizeCheck` at the input refuses sizes for which the answer may be another one. Arguments
    that are not tensors are fixed. Calls of torch.nn's layers become calls of the model's modules, other
    operations functions of torch, or of ATen where there is none.

    Args:
        model: a copy that may be changed: layers of user's classes that only hold a convolution's, a linear
            layer's or a BatchNorm's tensors become those of torch.nn, checks and constants are added.

    Raises:
        Exception: whatever torch.export raises, or the user's code.
        ExportError: the batch size is not free, or an operation cannot be expressed.

    Source: torch.export, https://docs.pytorch.org/docs/stable/export.html.
    """
    examples = _examples(arguments)
    with watching(model) as others:
        program, all_free = _export(model, examples)
    _refuse_frozen_dropout(model, others)
    own, inputs = _sorted_inputs(program, model)
    leaves, spec = pytree.tree_flatten(examples)
    known = dict(zip(inputs, leaves, strict=True))
    limits = Limits({node: x for node, x in known.items() if isinstance(x, Tensor)})
    if not all_free:
        limits.fix_rest()
    trials = Trials(model, known, spec, limits)
    make_writes_plain(program.graph, set(own))
    program.graph.eliminate_dead_code()
    writer = _Writer(model, program, own, others)
    trials.judge(writer.write(examples))
    return writer.with_checks(limits.checks())


def _examples(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Copies: export takes one tensor passed twice for one argument, and a size of 1 for a constant."""

    def copied(x: Tensor) -> Tensor:
        return torch.cat([x, x]) if x.dim() > 1 and len(x) == 1 else x.clone()

    with torch.no_grad():
        return tuple(pytree.tree_map_only(Tensor, copied, tuple(arguments)))


def _export(model: nn.Module, examples: tuple[Any, ...]) -> tuple[ExportedProgram, bool]:
    """The program; whether all sizes may vary, else the first ones: torch cannot solve every equation."""
    bound = dict(inspect.signature(model.forward).bind(*examples).arguments)

    def sizes(x: object, most: int) -> dict[int, Any] | None:
        if not isinstance(x, Tensor):
            return None
        return {dim: Dim.AUTO for dim, size in enumerate(x.shape[:most]) if size > 1}

    def export(most: int) -> ExportedProgram:
        dynamic = pytree.tree_map(lambda x: sizes(x, most), bound)
        with evaluating(model), torch.no_grad(), _quietly():
            return torch.export.export(model, examples, dynamic_shapes=dynamic)

    try:
        return export(1000), True
    except Exception as error:
        if place_of(error) is not None:  # the user's code, not the sizes
            raise
        return export(1), False


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the graphs and advice that torch.export prints when it fails; its exception says enough."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.disabled = was_disabled


def _refuse_frozen_dropout(model: nn.Module, names: set[str]) -> None:
    """Of layers that are written out in their operations: torch.export leaves no dropout in them."""
    for name in sorted(names):
        share = getattr(model.get_submodule(name), "dropout", 0.0)
        if isinstance(share, float) and share > 0:
            raise ExportError(f"the dropout of {name} would be lost, which takes or gives several tensors")


def _sorted_inputs(program: ExportedProgram, model: nn.Module) -> tuple[dict[fx.Node, str], list[fx.Node]]:
    """Placeholders that are tensors of the model, with their names there, and those that are arguments."""
    own: dict[fx.Node, str] = {}
    arguments = []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            arguments.append(node)
        elif spec.kind in _TENSORS and spec.target is not None:
            own[node] = _found(spec.target, model, program)
        else:
            raise ExportError(f"it uses an object of its own ({spec.target})")
    return own, arguments


def _found(name: str, model: nn.Module, program: ExportedProgram) -> str:
    """Name of a tensor of the model; one that only the exported program has is added."""
    with contextlib.suppress(AttributeError):
        if isinstance(operator.attrgetter(name)(model), Tensor):
            return name
    name = _free_name(model, name.replace(".", "_"))
    model.register_buffer(name, program.constants[name].clone(), persistent=False)
    return name


def _free_name(model: nn.Module, name: str) -> str:
    while hasattr(model, name):
        name += "_"
    return name


class _Writer:
    """Writes an exported graph anew, over the modules of the model."""

    def __init__(
        self, model: nn.Module, program: ExportedProgram, own: dict[fx.Node, str], others: set[str]
    ) -> None:
        self._model, self._program, self._own = model, program, own
        self._graph = fx.Graph()
        self._known: dict[fx.Node, Any] = {}
        calls = leaf_calls(program.graph, model, set(own), others)
        self._calls = {node: call for call in calls for node in call.nodes}

    def write(self, examples: tuple[Any, ...]) -> fx.Graph:
        self._write_inputs(examples)
        for node in self._program.graph.nodes:
            if node.op == "call_function" and not aten.is_check(node):
                self._write(node)
        [output] = [node for node in self._program.graph.nodes if node.op == "output"]
        results = [self._read(x) if isinstance(x, fx.Node) else x for x in output.args[0]]
        self._graph.output(pytree.tree_unflatten(results, self._program.call_spec.out_spec))
        return self._graph

    def with_checks(self, checks: dict[fx.Node, SizeCheck]) -> fx.Graph:
        """The written graph, with inputs that are checked."""
        for node, check in checks.items():
            read = self._known[node]
            name = _free_name(self._model, f"{read.name}_sizes")
            self._model.add_module(name, check)
            with self._graph.inserting_after(read):
                checked = self._graph.call_module(name, (read,))
            read.replace_all_uses_with(checked, lambda user, checked=checked: user is not checked)
        return self._graph

    def _write_inputs(self, examples: tuple[Any, ...]) -> None:
        arguments = [self._graph.placeholder(name) for name in _names(self._model, len(examples))]
        leaves: list[tuple[Any, Any]] = pytree.tree_flatten_with_path(examples)[0]
        inputs = [n for n in self._program.graph.nodes if n.op == "placeholder" and n not in self._own]
        for node, (path, _) in zip(inputs, leaves, strict=True):
            read = arguments[path[0].idx]
            for key in path[1:]:
                read = self._graph.call_function(*_access(read, key))
            self._known[node] = read

    def _write(self, node: fx.Node) -> None:
        call = self._calls.get(node)
        if call is not None:
            if call.y is node:
                self._known[node] = self._graph.call_module(call.name, (self._read(call.x),))
        elif isinstance(node.target, HigherOrderOperator):
            raise ExportError(f"it needs the operator {node.target}", place_in(node.stack_trace))
        else:
            self._known[node] = self._written(node)

    def _written(self, node: fx.Node) -> Any:
        for source in node.all_input_nodes:
            self._read(source)
        if aten.name_of(node) and isinstance(node.args[0], fx.Node):
            arguments = {
                name: self._own.get(value, value) if isinstance(value, fx.Node) else value
                for name, value in aten.named_arguments(node).items()
            }
            dims = len(node.args[0].meta["val"].shape)
            layer = layer_for(self._model, aten.name_of(node), arguments, dims)
            if layer is not None:
                return self._graph.call_module(layer, (self._known[node.args[0]],))
        return aten.call(self._graph, node, self._known)

    def _read(self, node: fx.Node) -> Any:
        if node not in self._known:
            self._known[node] = self._graph.get_attr(self._own[node])
        return self._known[node]


def _access(read: fx.Node, key: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The call that reads one entry of a list, a dictionary or a named tuple."""
    if isinstance(key, pytree.GetAttrKey):
        return getattr, (read, key.name)
    return operator.getitem, (read, key.idx if isinstance(key, pytree.SequenceKey) else key.key)


def _names(model: nn.Module, count: int) -> list[str]:
    """Names of the first arguments of forward; those of *args have numbers."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind == parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        names.append(parameter.name)
    return names[:count]
