"""Which past events carried a recommendation: occlusion, which works for any model.

An event's weight for an item is the item's score after the whole history, minus its score after the history
without that event. It says what the model did, in the model's own unit of score; it does not say why people
like things. Two events that say the same may both weigh little, since each covers for the other; weights need
not sum to the score, and may be negative: the event speaks against the item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ensuite.errors import EnsuiteError
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import ItemId, When, to_seconds


@dataclass(frozen=True)
class Explanation:
    """What each event of a history weighs for each of some items."""

    items: list[ItemId]
    """The N items that are explained."""
    scores: list[float]
    """Their scores after the whole history: [N]."""
    weights: list[list[float]]
    """``weights[i][e]``: what event e of the history, as it was given, weighs for item i: [N, E]. 0 for an
    event that the model does not read (an unknown item, or too long ago); NaN when it reads one event only,
    and there is nothing to leave out."""

    def of(self, item: ItemId) -> list[float]:
        """Return the weights of all events for one of the items: [E]."""
        return self.weights[self.items.index(item)]


def explain(
    recommender: Recommender, history: Iterable[Any], items: Sequence[ItemId], *, at: When | None = None
) -> Explanation:
    """Weigh each event of one history for each of ``items``, in one batch of E + 1 histories.

    The time of the request stays what it is for the whole history, also when its last event is left out, and
    what the model's length cuts off stays cut off: only the event itself goes.

    Parameters
    ----------
    recommender
        Any; its model is asked as it is in `Recommender.recommend`.
    history
        Events as for `Recommender.recommend`.
    items
        Items that the model knows, usually those that it recommended.
    at
        When the items are asked for; default: the time of the last event.

    Raises
    ------
    EnsuiteError
        As `Recommender.recommend` does, and when there is no item to explain.

    Examples
    --------
    >>> import torch
    >>> from ensuite.models.recency import Recency, RecencyConfig
    >>> model = Recency(RecencyConfig(), n_items=3)
    >>> model.counts = torch.tensor([0, 5, 9, 7])
    >>> found = explain(Recommender(model, ["tea", "rice", "oil"]), ["tea", "oil"], ["tea"])
    >>> found.of("tea")[0] > found.of("tea")[1]
    True
    """
    events, asked = list(history), list(dict.fromkeys(items))
    if not asked:
        raise EnsuiteError("no item to explain: give those that were recommended, say")
    read = _read(recommender, events)
    if at is None and read and isinstance(events[0], tuple):
        at = events[read[-1]][1]
    histories = [[events[e] for e in read] or events]
    if len(read) > 1:
        histories += [[events[e] for e in read if e != left_out] for left_out in read]
    answers = recommender.recommend(histories, len(asked), exclude="none", candidates=asked, at=at)
    full, *without = [dict(zip(answer.ids, answer.scores)) for answer in answers]
    weights = []
    for item in asked:
        of_item = [0.0] * len(events)
        for e, fewer in zip(read, without):
            of_item[e] = full[item] - fewer[item]
        if not without:
            of_item[read[0]] = math.nan
        weights.append(of_item)
    return Explanation(asked, [full[item] for item in asked], weights)


def _read(recommender: Recommender, events: list[Any]) -> list[int]:
    """Return the positions of the events that the model reads, in order of time."""
    order = list(range(len(events)))
    if events and isinstance(events[0], tuple):
        order.sort(key=lambda e: to_seconds(events[e][1], recommender.time_unit))
    item = [event[0] if isinstance(event, tuple) else event for event in events]
    return [e for e in order if recommender.knows(item[e])][-recommender.model.max_length :]
