"""Preferences by template: what kinds the latest items were, in five short instructions. The same events give
the same texts, on any machine; nothing has to be downloaded.

It stands in for a language model in tests and where none is at hand. What it knows is the kinds of the latest
five items (and the summary of a review): its preferences say less than those of a model that reads reviews.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from ensuite.preferences.schema import MOST
from ensuite.preferences.seen import Reader, Seen

REVIEW_WORDS = 12
"""Words of a review that are quoted."""
AGAIN = ("Look for more {}", "Search for {} again", "Prefer {} to other kinds", "Choose {} first")
"""For items of which too few kinds are known."""


class TemplateWriter:
    """Writes four likes and one thing to avoid."""

    def __init__(self, reader: Reader):
        counts = Counter(kind for kinds in reader.kinds for kind in kinds)
        self.common = sorted(counts, key=lambda kind: (-counts[kind], kind))

    def write(self, events: Sequence[Seen]) -> list[str] | None:
        """Return five preferences from the latest events, oldest first; None when they tell nothing."""
        liked = _weigh([event for event in events if event.liked is not False])
        disliked = [kind for kind in _weigh([e for e in events if e.liked is False]) if kind not in liked]
        positive = list(islice(_likes(events, liked), MOST))
        if len(positive) < MOST:
            return None
        there = {kind for event in events for kind in event.kinds}
        avoid = next(iter(disliked), None) or next((kind for kind in self.common if kind not in there), None)
        return positive if avoid is None else [*positive[: MOST - 1], f"Avoid {avoid}"]


def _likes(events: Sequence[Seen], liked: Sequence[str]) -> Iterator[str]:
    """Yield different wishes, the strongest first."""
    said: set[str] = set()
    for text in _wishes(events, liked):
        if text not in said:
            said.add(text)
            yield text


def _wishes(events: Sequence[Seen], liked: Sequence[str]) -> Iterator[str]:
    yield from (f"Find {kind}" for kind in liked[:2])
    newest = next((event for event in reversed(events) if event.liked is not False), None)
    if newest is not None and newest.review:
        yield f"Look for {' '.join(newest.review.split()[:REVIEW_WORDS])}"
    if newest is not None and len(newest.kinds) > 1:
        yield f"Find {' and '.join(newest.kinds[:3])}"
    yield from (f"Find {kind}" for kind in liked[2:])
    yield from (again.format(kind) for again in AGAIN for kind in liked)


def _weigh(events: Sequence[Seen]) -> list[str]:
    """Return the kinds of events, those of more and later ones first."""
    weight: Counter[str] = Counter()
    for age, event in enumerate(events, 1):
        for kind in event.kinds:
            weight[kind] += age
    return sorted(weight, key=lambda kind: (-weight[kind], kind))
