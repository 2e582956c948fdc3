"""What is answered when the model cannot: the most popular items, or, where nothing says which those are, the
catalogue in its own order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ensuite.errors import EnsuiteError
from ensuite.models.popularity import Popularity
from ensuite.serve.recommendations import Ranked
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import BadRequest, ItemId
from ensuite.training.run import Run, load_run, read_card


@dataclass(frozen=True)
class Fallback:
    """All items, the most popular first."""

    source: str
    """Where the order is from: a run's name, or "catalogue order"."""
    ids: Sequence[ItemId]
    scores: Sequence[float | None]

    def best(
        self, k: int, excluded: Collection[str], candidates: Sequence[ItemId] | None, catalogue: Recommender
    ) -> Ranked:
        """Return the first k items that ``catalogue`` knows, with its titles.

        Raises
        ------
        BadRequest
            When k of them cannot be had.
        """
        among = None if candidates is None else set(map(str, candidates))
        ids: list[ItemId] = []
        scores: list[float | None] = []
        for item, score in zip(self.ids, self.scores):
            name = str(item)
            if name in excluded or not (among is None or name in among) or not catalogue.knows(item):
                continue
            ids.append(item)
            scores.append(score)
            if len(ids) == k:
                break
        if len(ids) < k:
            raise BadRequest(
                f"k = {k}: only {len(ids)} can be had from the fallback list; ask for at most that many", "k"
            )
        titled = catalogue.titles is not None
        titles = [catalogue.title(item) or "" for item in ids] if titled else None
        unknown = [item for item in candidates or [] if not catalogue.knows(item)]
        return Ranked(ids, scores, titles, [], unknown)  # type: ignore[arg-type]


def build_fallback(run: Run, given: Path | None) -> Fallback:
    """Return the fallback list of a service: the items of the popularity run ``given``; without one, of a
    popularity run on the same data in the folder of ``run``; else the catalogue of ``run`` in its own order.

    Raises
    ------
    EnsuiteError
        When ``given`` is no popularity run.
    """
    if given is not None:
        return _from_run(load_run(given))
    for card in sorted(run.path.resolve().parent.glob("*/card.json")):
        try:
            read = read_card(card.parent)
            if (
                read["model"] == "popularity"
                and read["data"]["fingerprint"] == run.card["data"]["fingerprint"]
            ):
                return _from_run(load_run(card.parent))
        except (EnsuiteError, KeyError, TypeError):
            continue  # a neighbour that cannot be read is not what was asked for
    ids = run.items["item_id"].to_list()
    return Fallback("catalogue order", ids, [None] * len(ids))


def _from_run(run: Run) -> Fallback:
    if not isinstance(run.model, Popularity):
        raise EnsuiteError(
            f"{run.path}: a {run.config.name} run; the fallback list is that of a popularity run "
            f"(`ensuite train popularity --data DATA --out RUN`)"
        )
    counts = run.model.counts[1:].numpy()
    order = np.argsort(-counts, kind="stable")
    ids = run.items["item_id"].to_list()
    return Fallback(run.name, [ids[row] for row in order], counts[order].astype(float).tolist())
