"""Texts of items: what is missing leaves nothing behind."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensuite.content.template import Template, as_text, render_items
from ensuite.errors import EnsuiteError

FULL = {"title": "Soap", "brand": "Ivory", "price": 3.5, "kinds": [["Beauty", "Bath"], ["Beauty", "Gift"]]}


@pytest.mark.parametrize(
    ("template", "without", "text"),
    [
        ("{title}. {brand}. {kinds}", "", "Soap. Ivory. Beauty, Bath, Gift"),
        ("{title}. {brand}. {kinds}", "brand", "Soap. Beauty, Bath, Gift"),
        ("{title}. {brand}. {kinds}", "title", "Ivory. Beauty, Bath, Gift"),
        ("{title}. {brand}. {kinds}", "title kinds", "Ivory"),
        ("{title}. {brand}. {kinds}", "title brand kinds", ""),
        ("{title} ({brand}), {price} dollars", "", "Soap (Ivory), 3.5 dollars"),
        ("{title} ({brand}), {price} dollars", "brand", "Soap, 3.5 dollars"),
        ("Title: {title}, brand: {brand}", "title", "brand: Ivory"),
        ("Title: {title}, brand: {brand}", "brand", "Title: Soap"),
        ("query: {title}", "title", ""),
        ("{title} {{new}} {title}", "", "Soap {new} Soap"),
    ],
)
def test_what_is_missing_leaves_nothing_behind(template: str, without: str, text: str) -> None:
    for nothing in (None, "", "  ", float("nan"), []):
        row = FULL | dict.fromkeys(without.split(), nothing)
        assert Template.parse(template).render(row) == text


@given(st.dictionaries(st.sampled_from("abc"), st.text(max_size=5), min_size=3))
def test_a_text_has_single_spaces_and_every_value(row: dict[str, str]) -> None:
    text = Template.parse("{a}. {b} ({c})").render(row)
    assert text == " ".join(text.split())
    assert all(as_text(value) in text for value in row.values())
    assert bool(text) == any(map(as_text, row.values()))


def test_values_become_words() -> None:
    assert as_text("Dr. Scholl&#39;s\n Cream") == "Dr. Scholl's Cream"
    assert as_text([["a", "b"], None, ["b", ["", "c"]]]) == "a, b, c"
    assert as_text(0) == "0"
    assert as_text(True) == "True"


def test_bad_templates_are_refused() -> None:
    for template, said in (
        ("title", "no column in braces"),
        ("{title", "expected '}'"),
        ("{title!r}", "no column name"),
        ("{price:.2f}", "no column name"),
        ("{}", "no column name"),
        ("{a.b[0]}", "no column name"),
    ):
        with pytest.raises(EnsuiteError, match=said):
            Template.parse(template)


def test_columns_that_are_not_there_or_empty_are_refused() -> None:
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a", None], "brand": [None, ""]})
    assert render_items(items, "{title}", "data") == ["a", ""]
    with pytest.raises(EnsuiteError, match=r"data: no item column 'titel' \(--text\); did you mean 'title'"):
        render_items(items, "{titel}", "data")
    with pytest.raises(EnsuiteError, match="data: item column 'brand' is empty for all 2 items"):
        render_items(items, "{title} {brand}", "data")
    assert render_items(items, "{title} {brand}", "data", may_be_empty=True) == ["a", ""]
