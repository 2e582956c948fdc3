"""Repeats and discoveries: how well a model brings back what a user knows, and how well it finds what is new.

H is the set of items among a user's **training** events. For a case with the targets G and the list R of the
best k:

    ndcg-rep@k, recall-rep@k   with G replaced by its items in H
    ndcg-exp@k, recall-exp@k   with G replaced by its items outside H
    rep-ratio@k                share of the k places of R that hold items of H
    rep-bias@k                 rep-ratio@k minus the share of G that is in H: above 0, too many repeats

A case where the replaced G is empty has no value; it is averaged over the cases that have one, then over
users (PISA, RecSys 2024, section 5.2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.evaluate.ranks import Ranks

PARTED = ("ndcg-exp", "ndcg-rep", "recall-exp", "recall-rep")
"""Metrics over part of the targets."""
BALANCE = ("rep-bias", "rep-ratio")
"""Metrics of the lists."""


def mark_repeats(ranks: Ranks, train: Events) -> Ranks:
    """Note which targets, and which items of the lists, are among their users' training events."""
    width = train.n_items + 1
    user = np.repeat(np.arange(len(train.offsets)), train.lengths)
    known = np.unique(user * width + train.item_idx[train.rows()])

    def holds(owner: np.ndarray, item: np.ndarray) -> np.ndarray:
        pair = owner * width + item
        at = np.minimum(np.searchsorted(known, pair), max(len(known) - 1, 0))
        return known[at] == pair if len(known) else np.zeros(pair.shape, bool)

    lists = ranks.lists
    return replace(
        ranks,
        repeat=holds(ranks.user[ranks.owner], ranks.target),
        repeat_lists=None if lists is None else holds(ranks.user[:, None], lists) & (lists > 0),
    )


def part_of(ranks: Ranks, base: str) -> tuple[Ranks, np.ndarray]:
    """Return the ranks of the targets that ``base`` looks at, and which cases have one: [C] bool."""
    repeat = _marked(ranks)
    keep = repeat if base.endswith("-rep") else ~repeat
    return ranks.restrict(keep), np.bincount(ranks.owner[keep], minlength=len(ranks)) > 0


def balance(ranks: Ranks, base: str, k: int) -> np.ndarray:
    """Return ``rep-ratio`` or ``rep-bias`` of the best ``k`` for every case: [C] float64."""
    repeat = _marked(ranks)
    if ranks.repeat_lists is None or ranks.repeat_lists.shape[1] < k:
        raise EnsuiteError(f"metric '{base}@{k}' needs lists: call compute_ranks(..., top={k})")
    ratio = ranks.repeat_lists[:, :k].sum(1) / k
    if base == "rep-ratio":
        return ratio
    return ratio - np.bincount(ranks.owner[repeat], minlength=len(ranks)) / ranks.n_targets


def _marked(ranks: Ranks) -> np.ndarray:
    if ranks.repeat is None:
        raise EnsuiteError(
            "which targets are repeats is not known: call `ensuite.evaluate.repeats.mark_repeats` first"
        )
    return ranks.repeat
