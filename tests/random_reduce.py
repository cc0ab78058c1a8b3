"""Makes a failing random network smaller, line by line, for as long as it fails."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from random_program import Program

_WORD = re.compile(r"[A-Za-z_]\w*")
_TENSOR = re.compile(r"\b(?:x|z|t\d+)\b")
_LIST = re.compile(r"\[[\d, ]+\]")
_KEYWORD = re.compile(r", \w+=(?:\([^()]*\)|[^,()]+)")


def reduced(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Without lines, arguments and zeros that do not matter; `fails`: whether a program still does."""
    before = None
    while program != before:
        before = program
        for simpler in (_results, _lines, _flags, _setup, _keywords):
            smaller: Program | None = program
            while smaller is not None:
                program = smaller
                smaller = next((candidate for candidate in simpler(program) if fails(candidate)), None)
    return program


def _results(program: Program) -> Iterator[Program]:
    """Returning another tensor, the earliest first."""
    for name in _TENSOR.findall(" ".join(targets for targets, _ in program.lines)):
        if name != program.result:
            yield _needed(replace(program, result=name))


def _lines(program: Program) -> Iterator[Program]:
    """Readers of a line's result read what the line reads, or what an earlier line made."""
    for i in reversed(range(len(program.lines))):
        made = _TENSOR.findall(" ".join(targets for targets, _ in program.lines[:i]))
        for target in _TENSOR.findall(program.lines[i][0]):
            for name in dict.fromkeys([*_TENSOR.findall(program.lines[i][1]), *reversed(made)]):
                yield _renamed(program, i, target, name)


def _renamed(program: Program, i: int, target: str, name: str) -> Program:
    """Behind line `i`, `name` stands for `target`."""
    word = re.compile(rf"\b{target}\b")
    behind = [(targets, word.sub(name, expression)) for targets, expression in program.lines[i + 1 :]]
    lines = (*program.lines[: i + 1], *behind)
    return _needed(replace(program, lines=lines, result=word.sub(name, program.result)))


def _flags(program: Program) -> Iterator[Program]:
    for flag in ("again", "training"):
        if program.checking[flag]:
            yield replace(program, checking={**program.checking, flag: False})


def _setup(program: Program) -> Iterator[Program]:
    """Without a line, or with one zero instead of several; the first line draws the numbers."""
    for i, line in enumerate(program.setup[1:], 1):
        lists = _LIST.findall(line)
        single = [_LIST.sub(f"[{number}]", line) for number in re.findall(r"\d+", "".join(lists))]
        for shorter in [[], *[[other] for other in single if other != line]]:
            yield replace(program, setup=(*program.setup[:i], *shorter, *program.setup[i + 1 :]))


def _keywords(program: Program) -> Iterator[Program]:
    """Without a keyword argument of a layer or a function."""
    for part in ("fields", "lines"):
        pairs = getattr(program, part)
        for i, (name, expression) in enumerate(pairs):
            for match in _KEYWORD.finditer(expression):
                shorter = expression[: match.start()] + expression[match.end() :]
                yield replace(program, **{part: (*pairs[:i], (name, shorter), *pairs[i + 1 :])})


def _needed(program: Program) -> Program:
    """Without lines that the result does not need, layers that no line needs, and their zeros."""
    needed, lines = set(_WORD.findall(program.result)), []
    for targets, expression in reversed(program.lines):
        if needed.intersection(_WORD.findall(targets)):
            needed.update(_WORD.findall(expression))
            lines.append((targets, expression))
    fields = tuple(field for field in program.fields if field[0] in needed)
    gone = {name for name, _ in program.fields} - needed
    setup = tuple(line for line in program.setup if _WORD.findall(line)[1] not in gone)
    return replace(program, lines=tuple(reversed(lines)), fields=fields, setup=setup)
