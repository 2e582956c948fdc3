"""The right half of "Try it": what one model, or two side by side, put next."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ensuite.serve.page.components import Tag, icon_button
from ensuite.serve.recommendations import Ranked
from ensuite.serve.requests import ItemId


@dataclass(frozen=True)
class Listed:
    """One model's list."""

    side: str
    """"a" or "b": part of the names of its rows in HTML."""
    name: str
    """Of the model."""
    ranked: Ranked
    other: Sequence[ItemId] | None = None
    """What the list beside it holds, best first."""


class AnswerList:
    """Shows one list; a row can be looked at (mouse or focus), pinned, and added to the history.

    Parameters
    ----------
    listed
        What is shown.
    look
        Called with (side, item) when a row is pointed at.
    pin
        Called likewise when its weights are to stay.
    add
        Called with the item when it is taken.
    """

    def __init__(
        self,
        listed: Listed,
        look: Callable[[str, ItemId], Any],
        pin: Callable[[str, ItemId], Any],
        add: Callable[[ItemId], Awaitable[None]],
    ):
        self.listed, self.look, self.pin, self.add = listed, look, pin, add
        self.rows: dict[str, Tag] = {}
        self.whys: dict[str, Tag] = {}
        with Tag("div", "list"):
            if listed.other is not None:
                Tag("h3", "", listed.name, id=f"name-{listed.side}")
            titles = listed.ranked.titles or [""] * len(listed.ranked.ids)
            bars = scale(listed.ranked.scores)
            with Tag("ol", "answers", aria_label=f"What {listed.name} puts next"):
                for rank, item in enumerate(listed.ranked.ids, 1):
                    self._row(rank, item, titles[rank - 1], listed.ranked.scores[rank - 1], bars[rank - 1])

    def mark(self, item: ItemId | None, pinned: bool) -> None:
        """Light the row of an item, if there is one."""
        for key, row in self.rows.items():
            lit = item is not None and key == str(item)
            row.classes(add="lit" if lit else "", remove="" if lit else "lit")
            self.whys[key].set(aria_pressed=str(lit and pinned).lower())

    def _row(self, rank: int, item: ItemId, title: str, score: float, part: float) -> None:
        side = self.listed.side
        with Tag("li", "answer", data_item=str(item)) as row:
            Tag("span", "rank", str(rank))
            with Tag(
                "button", "take", type="button", id=f"take-{side}-{rank}", title="Add to the history"
            ) as take:
                Tag("span", "name", title or str(item))
                if title:
                    Tag("span", "hint", str(item))
                Tag("span", "unseen", ", add to the history")
            with Tag("div", "score"):
                Tag("span", "bar", aria_hidden="true").style(f"--part: {part:.3f}")
                Tag("span", "number", write_score(score))
            if self.listed.other is not None:
                text, kind, said = compare_ranks(rank, item, self.listed.other)
                Tag("span", f"tag {kind}", text, title=said, aria_label=said)
            why = icon_button(
                "why",
                f"Which events speak for {title or item}",
                lambda: self.pin(side, item),
                id=f"why-{side}-{rank}",
            )
        take.on("click", lambda _: self.add(item), args=[])
        for event in ("mouseenter", "focusin"):
            row.on(event, lambda _: self.look(side, item), args=[], throttle=0.05)
        self.rows[str(item)], self.whys[str(item)] = row, why


def scale(scores: Sequence[float]) -> list[float]:
    """Return the lengths of the bars: shares of the highest score, or where some are negative, of the span
    of the list.

    >>> scale([4.0, 2.0, 1.0]), scale([1.0, -1.0])
    ([1.0, 0.5, 0.25], [1.0, 0.04])
    """
    if not scores:
        return []
    high, low = max(scores), min(scores)
    if low >= 0 and high > 0:
        return [score / high for score in scores]
    if high == low:
        return [1.0] * len(scores)
    return [0.04 + 0.96 * (score - low) / (high - low) for score in scores]


def write_score(score: float | None) -> str:
    """Write a score in at most six signs.

    >>> write_score(0.51234), write_score(-12.345), write_score(123456.0)
    ('0.512', '−12.3', '123,456')
    """
    if score is None or math.isnan(score):
        return ""
    size = abs(score)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:.1f}" if size >= 10 else f"{size:.3f}"
    return ("−" if score < 0 else "") + text


def compare_ranks(rank: int, item: ItemId, other: Sequence[ItemId]) -> tuple[str, str, str]:
    """Return a short tag, its kind, and what it says of an item's rank in the list beside.

    >>> compare_ranks(1, "tea", ["rice", "tea"]), compare_ranks(2, "oil", ["tea"])[:2]
    (('↑1', 'higher', 'rank 2 in the other list'), ('only here', 'only'))
    """
    if item not in other:
        return "only here", "only", "not in the other list"
    there = other.index(item) + 1
    said = f"rank {there} in the other list"
    if there == rank:
        return "=", "same", "the same rank in the other list"
    return (f"↑{there - rank}", "higher", said) if there > rank else (f"↓{rank - there}", "lower", said)
