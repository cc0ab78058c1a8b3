"""Says why each channel stayed or left, from what the finished pass knows about every call."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimfast.graph.channels import Call, Cut
from slimfast.graph.rules.join import Cat
from slimfast.graph.rules.kept import Place
from slimfast.graph.rules.parts import Gather, PixelShuffle, PixelUnshuffle
from slimfast.graph.rules.rule import Barrier, Either, Rule, Size
from slimfast.graph.rules.spatial import Flatten

RETAINED = "retained though the scale is 0"
_MOST_NAMES = 3  # of layers in one line
_MOST_LINES = 3  # on channels that nobody reads
# Why a reader does not read a channel, with a gap for its name.
_REASONS = (
    "the scale of {} is 0",
    "the weights of {} for it are 0",
    "{} left, too",
    "{} makes it constant",
)
_ZERO_SCALE, _ZERO_WEIGHTS, _LEAVES, _CONSTANT = range(len(_REASONS))


@dataclass
class Account:
    """What became of the channels that one call computes.

    Attributes:
        name: of the module, or of the node if the call is a function's.
        channels: so many there were.
        stay: so many there are.
        left: reason to number of channels.
        kept: likewise, of those that stay.
        notes: whatever else there is to say.
    """

    name: str
    channels: int
    stay: int
    left: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.name}: {_channels(self.channels)}, {self.stay} stay, {self.channels - self.stay} left"
        lines = [f"  {count} left: {reason}" for reason, count in self.left.items()]
        lines += [f"  {count} stay: {reason}" for reason, count in self.kept.items()]
        return "\n".join([head, *lines, *(f"  {note}" for note in self.notes)])


def explain(
    calls: Sequence[Call], cuts: Mapping[str, Cut], zero_scales: Mapping[str, Tensor]
) -> dict[str, Account]:
    """An account of every call that has channels, by the name of its module or node; of several, the first.

    Args:
        calls, cuts: of `shrink`, which must be done.
        zero_scales: BatchNorm name to bool [C], where its scale is 0.
    """
    book = _Book(calls, cuts, zero_scales)
    accounts: dict[str, Account] = {}
    for call in calls:
        if _width(call) and call.node.op.startswith("call_"):
            accounts.setdefault(_name(call), book.account(call))
    return accounts


@dataclass
class _Ends:
    """Per channel of a call, the layers that the network's data meet next, whatever they pass in between.

    Sets of layers are integers with the bits of their numbers, for a stream of channels meets many of them.

    Attributes:
        readers: those that read it.
        passers: those that do not, with the reason: bit len(_REASONS) * layer + reason.
        sinks: those that would get it as a constant.
    """

    readers: list[int]
    passers: list[int]
    sinks: list[int]

    @classmethod
    def none(cls, count: int) -> "_Ends":
        return cls([0] * count, [0] * count, [0] * count)

    def add(self, channel: int, readers: int = 0, passers: int = 0, sinks: int = 0) -> None:
        self.readers[channel] |= readers
        self.passers[channel] |= passers
        self.sinks[channel] |= sinks


@dataclass
class _Masks:
    """What the pass found out about each channel, as lists: reading them one by one is what happens here.

    `dead` are those that leave for their scale, `retained` those that stay in spite of it.
    """

    live: list[bool]
    wanted: list[bool]
    dead: list[bool]
    retained: list[bool]

    @classmethod
    def of(cls, call: Call, zero_scale: Tensor | None) -> "_Masks":
        none = torch.zeros_like(call.facts.live)
        zero = zero_scale if zero_scale is not None and isinstance(call.module, _BatchNorm) else none
        retained = none if call.retained is None else zero & call.retained
        wanted = none if call.wanted is None or _is_gone(call) else call.wanted
        masks = (call.facts.live, wanted, zero & ~retained, retained)
        return cls(*(mask.tolist() for mask in masks))


class _Book:
    """Follows every channel to its readers, from the output of the network to its inputs."""

    def __init__(
        self, calls: Sequence[Call], cuts: Mapping[str, Cut], zero_scales: Mapping[str, Tensor]
    ) -> None:
        self._cuts = cuts
        self._names = [_name(call) for call in calls]
        self._readers = [_reader(call) for call in calls]
        self._number = {call.node: number for number, call in enumerate(calls)}
        self._ends = {call.node: _Ends.none(_width(call)) for call in calls}
        self._masks = {call.node: _Masks.of(call, zero_scales.get(_name(call))) for call in calls}
        for reader in reversed(calls):
            for source in reader.inputs:
                self._visit(reader, source, self._ends[source.node])

    def account(self, call: Call) -> Account:
        """Counts reasons; a call that nobody reads any more is gone with all channels."""
        held = torch.zeros_like(call.facts.live)
        if not _is_gone(call):
            held |= call.value.held
        if isinstance(call.rule, Barrier) and isinstance(call.module, nn.Linear):  # of more dimensions
            held = torch.ones(call.module.out_features, dtype=torch.bool)
        result = Account(_name(call), len(held), int(held.sum()))
        if isinstance(call.rule, Barrier) and len(held) == int(held.sum()):
            result.kept["the operation is not understood"] = len(held)
            return result
        self._add_constants(call, ~held & ~call.facts.live, result.left)
        self._add_unread(call, ~held & call.facts.live, result.left)
        self._add_kept(call, held, result.kept)
        return result

    def _add_constants(self, call: Call, left: Tensor, told: dict[str, int]) -> None:
        """Values are told as a range for all channels that have the same reason."""
        groups: dict[str, list[int]] = {}
        for channel in _numbers(left):
            groups.setdefault(self._why_constant(call, channel), []).append(channel)
        for reason, channels in groups.items():
            told[f"{reason}: {self._constants(call, channels)}"] = len(channels)

    def _add_unread(self, call: Call, left: Tensor, told: dict[str, int]) -> None:
        reasons = [self._ends[call.node].passers[channel] for channel in _numbers(left)]
        if len(set(reasons)) > _MOST_LINES:
            reasons = [reduce(or_, reasons)] * len(reasons)
        told |= {self._told(reason): count for reason, count in Counter(reasons).items()}

    def _add_kept(self, call: Call, held: Tensor, told: dict[str, int]) -> None:
        """Those that are read go into one line, with numbers where readers want different ones."""
        others = {channel: self._why_kept_unread(call, channel) for channel in _numbers(held)}
        read = [self._ends[call.node].readers[channel] for channel, why in others.items() if not why]
        told |= Counter(why for why in others.values() if why)
        if read:
            wanted = Counter(number for numbers in read for number in _bits(numbers)).most_common()
            names = ((self._readers[number], count) for number, count in wanted)
            some = [name if count == len(read) else f"{name} ({count})" for name, count in names]
            told[f"read by {_shortened(some)}"] = len(read)

    def _constants(self, call: Call, channels: list[int]) -> str:
        """What they are, and where they go."""
        values = call.facts.value[channels]
        low, high = float(values.min()), float(values.max())
        told = f"constant {low:.3g}" if low == high else f"constants {low:.3g} to {high:.3g}"
        sinks = reduce(or_, (self._ends[call.node].sinks[channel] for channel in channels))
        names = [self._readers[number] for number in _bits(sinks)]
        return told + (f", folded into {_shortened(names)}" if sinks else "")

    def _why_constant(self, call: Call, channel: int) -> str:
        if self._masks[call.node].dead[channel]:
            return "its scale is 0"
        if isinstance(call.module, _BatchNorm):
            return "the filter in front is zero"
        return "all that it depends on is constant"

    def _why_kept_unread(self, call: Call, channel: int) -> str:
        """Why it stays for another reason than that it is read; "" if it is."""
        if self._masks[call.node].retained[channel]:
            return RETAINED
        read = self._masks[call.node].wanted[channel]
        return "" if read else "not read, but fills up a group, or costs nothing"

    def _told(self, passers: int) -> str:
        """Layers that say the same are told together."""
        names: list[list[str]] = [[] for _ in _REASONS]
        for bit in _bits(passers):
            number, reason = divmod(bit, len(_REASONS))
            names[reason].append(self._names[number])
        told = [
            reason.format(_shortened(those)) for reason, those in zip(_REASONS, names, strict=True) if those
        ]
        return "; ".join(told) or "nobody reads it"

    def _passes(self, reader: Call, reason: int) -> int:
        return 1 << len(_REASONS) * self._number[reader.node] + reason

    def _visit(self, reader: Call, source: Call, ends: _Ends) -> None:
        """Adds what one reader does with each channel of one of its inputs."""
        if isinstance(reader.rule, Size) or not _width(source):
            return
        if _is_gone(reader) and isinstance(reader.rule, Barrier):
            for channel in range(_width(source)):
                ends.add(channel, passers=self._passes(reader, _LEAVES))
        elif isinstance(reader.rule, Barrier):
            own = 1 << self._number[reader.node]
            for channel in range(_width(source)):
                ends.add(channel, readers=own, sinks=own)
        elif isinstance(reader.module, _ConvNd | nn.Linear):
            self._visit_product(reader, source, ends)
        elif isinstance(reader.module, _BatchNorm):
            self._visit_norm(reader, source, ends)
        else:
            self._pass_on(reader, source, ends)

    def _visit_product(self, reader: Call, source: Call, ends: _Ends) -> None:
        """A convolution or a matrix product."""
        if not reader.wants_contents or _is_gone(reader):
            sinks = reduce(or_, self._ends[reader.node].sinks, 0)  # what is constant in front is so behind
            for channel in range(_width(source)):
                ends.add(channel, passers=self._passes(reader, _LEAVES), sinks=sinks)
            return
        own, zero = 1 << self._number[reader.node], self._passes(reader, _ZERO_WEIGHTS)
        for channel, read in enumerate(self._inputs_of(reader, _width(source)).tolist()):
            ends.add(channel, *((own, 0, own) if read else (0, zero, own)))

    def _inputs_of(self, reader: Call, count: int) -> Tensor:
        """bool [count]: which input channels the narrowed weight has."""
        siblings = reader.siblings or [reader]
        cut = self._cuts[f"{siblings[0].node.target}.weight"]
        read = torch.zeros(count, dtype=torch.bool)
        if isinstance(reader.module, nn.Linear):
            read[cut.kept[1].flatten()] = True
            return read
        transposed = isinstance(reader.module, _ConvNd) and reader.module.transposed
        group, inner = cut.kept[0].flatten(), cut.kept[1 if transposed else 2]
        rows = inner.reshape(len(group), -1)
        read[(group[:, None] * (count // cut.sizes[0]) + rows).flatten()] = True
        return read

    def _visit_norm(self, reader: Call, source: Call, ends: _Ends) -> None:
        behind, masks = self._ends[reader.node], self._masks[reader.node]
        own, zero = 1 << self._number[reader.node], self._passes(reader, _ZERO_SCALE)
        for channel in range(_width(source)):
            if masks.dead[channel]:
                ends.add(channel, passers=zero)
            elif masks.wanted[channel]:
                ends.add(channel, readers=own, sinks=own)
            else:
                ends.add(channel, passers=behind.passers[channel])

    def _pass_on(self, reader: Call, source: Call, ends: _Ends) -> None:
        """What an operation without weights computes of a channel is read by the readers of its result."""
        behind, masks = self._ends[reader.node], self._masks[reader.node]
        live, constant = self._masks[source.node].live, self._passes(reader, _CONSTANT)
        for channel, places in enumerate(_places(reader, source)):
            for place in places:
                if masks.wanted[place]:
                    ends.add(channel, behind.readers[place], sinks=behind.sinks[place])
                    continue
                swallowed = live[channel] and not masks.live[place]
                passers = constant if swallowed else behind.passers[place]
                ends.add(channel, passers=passers, sinks=behind.sinks[place])


def _places(reader: Call, source: Call) -> Sequence[Sequence[int]]:
    """For each channel of `source`, the channels of the reader's result that are made of it."""
    rule, count, width = _form(reader), _width(source), _width(reader)
    if isinstance(rule, Cat):
        start = sum(_width(other) for other in reader.inputs[: reader.inputs.index(source)])
        return [[start + channel] for channel in range(count)]
    if isinstance(rule, Gather):
        return _inverse(rule.index(reader), count)
    if isinstance(rule, Flatten | PixelUnshuffle):
        run = width // count
        return [range(channel * run, (channel + 1) * run) for channel in range(count)]
    if isinstance(rule, PixelShuffle):
        run = count // width
        return [[channel // run] for channel in range(count)]
    if isinstance(rule, Place):
        return [[int(place)] for place in rule.index(reader)] or [[]] * count
    if width == count:
        return [[channel] for channel in range(count)]
    return [range(width)] * count  # one that is spread over all


def _is_gone(call: Call) -> bool:
    """Whether nobody reads its result any more, not even the sizes, or nobody but others of this kind."""
    return call.wanted is None or call.value.node._erased


def _width(call: Call) -> int:
    """Number of channels, of what is split too."""
    return len(call.facts.live)


def _inverse(index: Tensor, count: int) -> list[list[int]]:
    places: list[list[int]] = [[] for _ in range(count)]
    for place, channel in enumerate(index.tolist()):
        places[channel].append(place)
    return places


def _form(call: Call) -> Rule:
    return call.rule.chosen(call) if isinstance(call.rule, Either) else call.rule


def _name(call: Call) -> str:
    """A module's name; a function's node, and what it calls where that is not part of the name."""
    if call.node.op == "call_module":
        return str(call.node.target)
    return call.node.name


def _reader(call: Call) -> str:
    """The same, as one that reads."""
    if call.node.op == "output":
        return "the output"
    return f"{_name(call)}, which is not understood" if isinstance(call.rule, Barrier) else _name(call)


def _bits(number: int) -> list[int]:
    """Which bits are set, in order."""
    found = []
    while number:
        lowest = number & -number
        found.append(lowest.bit_length() - 1)
        number ^= lowest
    return found


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _numbers(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
