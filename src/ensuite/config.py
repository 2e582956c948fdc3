"""Configuration: one typed dataclass per thing; the command line and YAML are made from it, never beside
it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import yaml
from pydantic.dataclasses import dataclass as pydantic_dataclass

from ensuite.errors import EnsuiteError, did_you_mean

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass whose values are checked and whose unknown keys are
    refused.

    A string literal under a field is its help text on the command line.
    """
    make: Callable[[type[T]], type[T]] = pydantic_dataclass(  # type: ignore[assignment]
        frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)
    )
    made = make(cls)
    fields = made.__pydantic_fields__  # type: ignore[attr-defined]
    for base in cls.__mro__[1:]:  # help texts of inherited fields
        for name, field in getattr(base, "__pydantic_fields__", {}).items():
            if fields[name].description is None:
                fields[name].description = field.description
    return made


def build_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build ``cls`` from plain values; ``where`` (a file's name, say) begins every error message.

    Raises
    ------
    EnsuiteError
        For an unknown key (with the nearest known one), a wrong type, or a contradiction between fields.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise EnsuiteError(explain(error, cls, where)) from None


def explain(error: pydantic.ValidationError, cls: type, where: str) -> str:
    """Say in words which key of ``where`` is wrong, its value, and what would be right."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "unexpected_keyword_argument":
            known = _fields_at(cls, problem["loc"][:-1])
            lines.append(f"{where}: unknown key '{key}'; {did_you_mean(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "value_error":
            lines.append(f"{where}: {key + ': ' if key else ''}{problem['ctx']['error']}")
        else:
            lines.append(f"{where}: {key} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)


def _fields_at(cls: type, path: tuple[Any, ...]) -> list[str]:
    for part in path:
        hints = {field.name: field.type for field in dataclasses.fields(cls)}
        inner = hints.get(str(part))
        if not dataclasses.is_dataclass(inner):
            return []
        cls = inner  # type: ignore[assignment]
    return [field.name for field in dataclasses.fields(cls)]


def config_dict(value: Any) -> dict[str, Any]:
    """Return the plain nested dictionary of a configuration: what YAML holds."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; an unreadable or differently shaped file is refused by its name."""
    try:
        value = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise EnsuiteError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EnsuiteError(f"{path}: not a YAML file: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise EnsuiteError(
            f"{path}: a mapping of keys to values is needed, this holds a {type(value).__name__}"
        )
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``over`` on ``base``, key by key at every depth.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
