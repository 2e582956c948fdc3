"""What a request gets: items with titles and scores, best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ensuite.serve.requests import ItemId

SHOWN = 3
"""How many histories a printed table holds."""
TITLE_WIDTH = 60


@dataclass(frozen=True, repr=False)
class Ranked:
    """The items recommended for one history, best first."""

    ids: list[ItemId]
    scores: list[float]
    titles: list[str] | None
    unknown: list[ItemId]
    """Items of the history that the model does not know; it was read without them."""
    unknown_candidates: list[ItemId] = field(default_factory=list)
    """Candidates that the model does not know."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        items = [{"item_id": item, "score": score} for item, score in zip(self.ids, self.scores)]
        if self.titles is not None:
            items = [
                {"item_id": item["item_id"], "title": title, "score": item["score"]}
                for item, title in zip(items, self.titles)
            ]
        return {"items": items, "unknown": self.unknown}

    def __repr__(self) -> str:
        titles = None if self.titles is None else [_shorten(title) for title in self.titles]
        columns: list[list[str]] = [
            ["", *(str(rank) for rank in range(1, len(self.ids) + 1))],
            ["item_id", *map(str, self.ids)],
            *([["title", *titles]] if titles is not None else []),
            ["score", *(f"{score:.4g}" for score in self.scores)],
        ]
        right = {0, len(columns) - 1}
        cells = [_align(column, number in right) for number, column in enumerate(columns)]
        lines = ["  ".join(row).rstrip() for row in zip(*cells)]
        if self.unknown:
            lines.append(
                f"({len(self.unknown)} unknown in the history: {', '.join(map(str, self.unknown[:5]))})"
            )
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class Recommendations:
    """The answer to a request for one history or many.

    ``ids``, ``scores``, ``titles`` and ``unknown`` are flat lists when one history was asked for, and hold
    one list for each history when many were. ``recommendations[i]`` is always the `Ranked` list of history
    i."""

    ranked: list[Ranked]
    many: bool = False
    unknown_candidates: list[ItemId] = field(default_factory=list)
    """Candidates of the request that the model does not know."""

    @property
    def ids(self) -> list[Any]:
        """Item ids, best first, in the log's own type."""
        return self._one_or_all([ranked.ids for ranked in self.ranked])

    @property
    def scores(self) -> list[Any]:
        """The model's scores: comparable within a history only."""
        return self._one_or_all([ranked.scores for ranked in self.ranked])

    @property
    def titles(self) -> list[Any] | None:
        """Titles, when the item table has any."""
        titles = [ranked.titles for ranked in self.ranked if ranked.titles is not None]
        return self._one_or_all(titles) if titles else None

    @property
    def unknown(self) -> list[Any]:
        """Items of the history that the model does not know."""
        return self._one_or_all([ranked.unknown for ranked in self.ranked])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: `items` and `unknown`, under `histories` when many were asked
        for."""
        answers = [ranked.to_dict() for ranked in self.ranked]
        out: dict[str, Any] = {"histories": answers} if self.many else answers[0]
        return out | ({"unknown_candidates": self.unknown_candidates} if self.unknown_candidates else {})

    def to_polars(self) -> pl.DataFrame:
        """Return one row per recommended item: history (from 0), rank (from 1), item_id, title (if any),
        score."""
        rows = [
            {"history": number, "rank": rank, **item}
            for number, ranked in enumerate(self.ranked)
            for rank, item in enumerate(ranked.to_dict()["items"], 1)
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def __getitem__(self, number: int) -> Ranked:
        return self.ranked[number]

    def __len__(self) -> int:
        return len(self.ranked)

    def __iter__(self) -> Iterator[Ranked]:
        return iter(self.ranked)

    def __repr__(self) -> str:
        if not self.many:
            return repr(self.ranked[0])
        parts = [f"history {number}\n{ranked!r}" for number, ranked in enumerate(self.ranked[:SHOWN])]
        more = len(self.ranked) - SHOWN
        return "\n\n".join(parts + ([f"... and {more:,} more histories"] if more > 0 else []))

    def _one_or_all(self, lists: list[Any]) -> list[Any]:
        return lists if self.many else lists[0]


def _shorten(title: str) -> str:
    return title if len(title) <= TITLE_WIDTH else title[: TITLE_WIDTH - 1] + "…"


def _align(cells: list[str], right: bool) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
