"""Recipes from and to TOML: one line per mistake, naming file, key, value and what is accepted."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from slimfast.train.errors import UsageError
from slimfast.train.recipe import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a TOML file.
        overrides: ``"section.key=value"``; the value as in TOML, bare words are strings.

    Raises:
        UsageError: one line for the first mistake.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOML's and UTF-8's errors are both ValueErrors
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    for override in overrides:
        _override(content, override)
    return check(content, str(path))


def check(content: Mapping[str, Any], source: str) -> Recipe:
    """A recipe from plain data; ``source`` is what an error names as the origin."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{source}: {_one_line(error, content)}") from None


def dump(recipe: Recipe) -> str:
    """The recipe as TOML with every default spelt out; ``load_recipe`` reads it back equal."""
    return "\n".join(_table(recipe.model_dump(exclude_none=True), "")).lstrip("\n") + "\n"


def first_difference(old: Recipe, new: Recipe) -> str | None:
    """The first key in which two recipes differ, with both values, or None."""
    a, b = (dict(_leaves(recipe.model_dump(exclude_none=True))) for recipe in (old, new))
    for key in [*a, *(key for key in b if key not in a)]:
        if a.get(key) != b.get(key):
            return f"{key} was {_shown(a.get(key))}, is {_shown(b.get(key))}"
    return None


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: section.key=value is accepted")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise UsageError(f"--set {override}: {key} is no section")
    content[keys[-1]] = value


def _one_line(error: ValidationError, content: Mapping[str, Any]) -> str:
    mistakes = error.errors()
    first = min(mistakes, key=lambda mistake: mistake["type"] != "extra_forbidden")  # a typo explains a gap

    path, section, value = _locate(first["loc"], content)
    if first["type"] == "extra_forbidden":
        known = list(section.model_fields)
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{'.'.join(path)}: no such key; {hint}(known here: {', '.join(known)})"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{'.'.join(path)}: {message}" if path else message
    field = section.model_fields.get(path[-1])
    accepted = field.description if field and field.description else "a section of that name"
    if first["type"] == "missing":
        return f"{'.'.join(path)}: missing; accepted: {accepted}"
    return f"{'.'.join(path)} = {_shown(value)}: accepted: {accepted}"


def _locate(
    location: Iterable[int | str], content: Mapping[str, Any]
) -> tuple[list[str], type[BaseModel], Any]:
    """The path of keys in the file, the section that holds the last one, the value there."""
    path: list[str] = []
    section: type[BaseModel] = Recipe
    value: Any = content
    for key in location:
        if path and path[-1] in section.model_fields:
            inner = section_of(section, path[-1])
            if inner is None:  # below a plain field pydantic names union members and list positions
                break
            section = inner
        path.append(str(key))
        value = value.get(key) if isinstance(value, Mapping) else None
    return path, section, value


def section_of(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The section below a key, or None where there is a plain value."""
    annotation = section.model_fields[key].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield prefix + key, {}  # an empty section still says something
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _table(content: Mapping[str, Any], path: str) -> Iterable[str]:
    if path:
        yield f"\n[{path}]"
    for key, value in content.items():
        if not isinstance(value, Mapping):
            yield f"{key} = {_shown(value)}"
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _table(value, f"{path}.{key}" if path else key)


def _shown(value: Any) -> str:
    """A value as TOML writes it; of TOML's types JSON differs in none that recipes use."""
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
