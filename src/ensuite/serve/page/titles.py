"""Finding an item by its title, as one types: whatever the case and the accents."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ensuite.serve.requests import ItemId

SHOWN = 12
"""How many items are found at most."""


@dataclass(frozen=True)
class Found:
    """An item that was looked for."""

    item: ItemId
    title: str


class TitleIndex:
    """The titles of a catalogue, folded once; an item without a title is found by its id.

    Examples
    --------
    >>> index = TitleIndex([7, 8, 9], ["Amélie", "La vie en rose", "Rosemary's Baby"])
    >>> [found.title for found in index.find("ROSE")]
    ["Rosemary's Baby", 'La vie en rose']
    >>> [found.item for found in index.find("amelie")], [found.item for found in index.find("8")]
    ([7], [8])
    """

    def __init__(self, item_ids: Sequence[ItemId], titles: Sequence[str] | None):
        self.item_ids = item_ids
        self.titles = titles
        ids = pl.Series("id", [str(item).casefold() for item in item_ids], pl.String)
        folded = ids if titles is None else pl.Series("text", [fold(title) for title in titles], pl.String)
        self._table = pl.DataFrame({"text": folded, "id": ids}).with_row_index("row")

    def find(self, text: str, limit: int = SHOWN) -> list[Found]:
        """Return the items whose titles hold every word of ``text``, or whose id it is: first that id, then
        titles that begin with it, then those in which a word does, the short before the long."""
        asked = fold(text)
        if not asked:
            return []
        title, is_id = pl.col("text"), pl.col("id") == text.strip().casefold()
        holds = pl.all_horizontal(title.str.contains(word, literal=True) for word in asked.split())
        found = (
            self._table.lazy()
            .filter(holds | is_id)
            .sort(
                ~is_id,
                ~title.str.starts_with(asked),
                ~title.str.contains(" " + asked, literal=True),
                title.str.len_chars(),
                "row",
            )
            .head(limit)
            .collect()
        )
        return [Found(self.item_ids[row], self.title(row)) for row in found["row"]]

    def title(self, row: int) -> str:
        """Return what is shown for the item at position ``row``: its title, or its id where it has none."""
        return (self.titles[row] if self.titles else "") or str(self.item_ids[row])


def fold(text: str) -> str:
    """Return ``text`` without case, accents and doubled spaces.

    >>> fold("  Léon:  The PROFESSIONAL ")
    'leon: the professional'
    """
    plain = unicodedata.normalize("NFKD", text)
    return " ".join("".join(sign for sign in plain if not unicodedata.combining(sign)).casefold().split())
