"""One text for each item, from the columns of the item table by a template such as
``{title}. {brand}. {categories}``."""

from __future__ import annotations

import html
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ensuite.errors import EnsuiteError, did_you_mean

CLOSING = ")]}\"'”’»"
LOOSE = " \t\n.,;:|-/–—"  # what may be left over before the first field that is there


@dataclass(frozen=True)
class Template:
    """A text with the names of columns in braces.

    A field that an item lacks takes the words before it along, so that nothing dangles: closing brackets
    belong to the field before them, everything else to the one after.

    >>> template = Template.parse("{title} ({brand}). Kind: {kind}")
    >>> template.render({"title": "Soap", "brand": None, "kind": ["bath", "gift"]})
    'Soap. Kind: bath, gift'
    >>> template.render({"title": "", "brand": "Ivory", "kind": None})
    '(Ivory)'
    """

    text: str
    parts: tuple[tuple[str, str, str], ...]
    """For each field: the words before it, its column, closing brackets after it."""
    end: str
    """Words after the last field."""

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template; one that is malformed, or names no column, is refused."""
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise EnsuiteError(f"--text {text!r}: {error}; write columns as {{title}}") from None
        parts: list[list[str]] = []
        before = ""
        for literal, name, spec, conversion in pieces:
            if parts and not before:
                closing = literal[: len(literal) - len(literal.lstrip(CLOSING))]
                parts[-1][2], literal = parts[-1][2] + closing, literal[len(closing) :]
            before += literal
            if name is None:  # the end, or a brace that was written twice
                continue
            if spec or conversion or not re.fullmatch(r"\w[\w .-]*", name):
                raise EnsuiteError(
                    f"--text {text!r}: {{{name}}} is no column name; write columns as {{title}}"
                )
            parts.append([before, name, ""])
            before = ""
        if not parts:
            raise EnsuiteError(f"--text {text!r}: no column in braces; write it like '{{title}}. {{brand}}'")
        return cls(text, tuple((a, b, c) for a, b, c in parts), before)

    @property
    def columns(self) -> list[str]:
        """The columns it names, each once."""
        return list(dict.fromkeys(name for _, name, _ in self.parts))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return an item's text; empty when it has none of the fields."""
        out = ""
        for before, name, closing in self.parts:
            value = as_text(row[name])
            if value:
                out += (before if out else before.lstrip(LOOSE)) + value + closing
        return " ".join((out + self.end).split()) if out else ""


def as_text(value: Any) -> str:
    """Return a value as words: lists joined by commas, each entry once; nothing for what is missing.

    >>> as_text([["Beauty", "Hair"], ["Beauty", "Nails &amp; Hands"]]), as_text(float("nan")), as_text(3.0)
    ('Beauty, Hair, Nails & Hands', '', '3')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return " ".join(html.unescape(value).split())
    if isinstance(value, Sequence):
        return ", ".join(dict.fromkeys(filter(None, map(as_text, _flat(value)))))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for part in value for leaf in _flat(part)]
    return [value]


def render_items(items: pl.DataFrame, text: str, where: str, *, may_be_empty: bool = False) -> list[str]:
    """Return a text for each row of the item table; empty for an item without any of the fields.

    Raises
    ------
    EnsuiteError
        When the template is malformed, or names a column that is not there or (unless it ``may_be_empty``)
        holds nothing.
    """
    template = Template.parse(text)
    for column in template.columns:
        if column not in items.columns:
            raise EnsuiteError(
                f"{where}: no item column '{column}' (--text); {did_you_mean(column, items.columns)}"
            )
    texts = [template.render(row) for row in items.select(template.columns).iter_rows(named=True)]
    for column in template.columns:
        if not may_be_empty and not any(map(as_text, items[column])):
            raise EnsuiteError(
                f"{where}: item column '{column}' is empty for all {items.height:,} items; leave it out of "
                "--text"
            )
    return texts
