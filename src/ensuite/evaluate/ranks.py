"""The rank of what came next, among all items: the one thing every accuracy metric is computed from.

Rank of a target = 1 + (candidates scored higher) + half of the other candidates tied with it. Candidates are
all items of the catalogue but those in the user's whole history (with ``exclude="seen"``) and those the
model scores -inf. A target that is no candidate can never be recommended: its rank is infinite. NaN scores
are an error.

Ranks are counted, not sorted, and the target's score is read from the very block that it is compared in, so
that ties are exact. Nothing of the size users x items is ever held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ensuite.data.dataset import Cases, Events
from ensuite.errors import EnsuiteError
from ensuite.evaluate.counting import Counter
from ensuite.evaluate.scoring import Progress, ragged_rows, score_batches

ALL_ITEMS = "all items"

Exclude = Literal["seen", "none"]


@dataclass(frozen=True)
class Ranks:
    """Ranks of the targets of C cases, T targets in all; those of case c are ``offsets[c]:offsets[c + 1]``.

    A process that evaluated its share only holds that share; `gather` puts the shares together.
    """

    case: np.ndarray  # [C] int64, positions in the list of cases, ascending
    user: np.ndarray  # [C] int64, user rows
    history_length: np.ndarray  # [C] int64, events before the first target
    n_candidates: np.ndarray  # [C] int64, items that were ranked
    offsets: np.ndarray  # [C + 1] int64
    target: np.ndarray  # [T] int64, item rows, each once per case
    rank: np.ndarray  # [T] float64, 1 is best; inf when the target is no candidate
    ties: np.ndarray  # [T] int64, other candidates with the target's score
    n_items: int
    candidates: str = ALL_ITEMS
    lists: np.ndarray | None = None  # [C, K] int64, item rows of the best K, 0 where there are no more
    repeat: np.ndarray | None = None  # [T] bool, the user's training events hold the target
    repeat_lists: np.ndarray | None = None  # [C, K] bool, likewise of the lists; see `repeats`

    def __len__(self) -> int:
        return len(self.case)

    @property
    def n_targets(self) -> np.ndarray:
        """Number of targets of each case: [C] int64."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> np.ndarray:
        """The case (row of this object) of each target: [T] int64."""
        return np.repeat(np.arange(len(self)), self.n_targets)

    @property
    def tie_rate(self) -> float:
        """Share of the targets that have another candidate with the same score."""
        return float((self.ties > 0).mean()) if len(self.ties) else 0.0

    @property
    def unreachable(self) -> int:
        """Number of targets that are no candidates."""
        return int(np.isinf(self.rank).sum())

    def take(self, rows: np.ndarray) -> Ranks:
        """Return the cases at ``rows`` (positions or a mask)."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        _, targets = ragged_rows(self.offsets[rows], self.offsets[rows + 1])
        return replace(
            self,
            case=self.case[rows],
            user=self.user[rows],
            history_length=self.history_length[rows],
            n_candidates=self.n_candidates[rows],
            offsets=np.concatenate([[0], np.cumsum(self.n_targets[rows])]),
            target=self.target[targets],
            rank=self.rank[targets],
            ties=self.ties[targets],
            lists=None if self.lists is None else self.lists[rows],
            repeat=None if self.repeat is None else self.repeat[targets],
            repeat_lists=None if self.repeat_lists is None else self.repeat_lists[rows],
        )

    def restrict(self, keep: np.ndarray) -> Ranks:
        """Keep only the targets where ``keep`` [T] is true, as if the others had not been asked for, and the
        cases that have one left."""
        left = np.bincount(self.owner[keep], minlength=len(self))
        kept = replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(left)]),
            target=self.target[keep],
            rank=self.rank[keep],
            ties=self.ties[keep],
            repeat=None if self.repeat is None else self.repeat[keep],
        )
        return kept.take(left > 0)


def truth(events: Events, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Return the sets of targets: offsets [C + 1] and item rows [T]; an item asked for twice in a case
    counts once.
    """
    owner, rows = ragged_rows(cases.history_end, cases.target_end)
    items = events.item_idx[rows].astype(np.int64)
    if len(owner) > len(cases):
        first = np.sort(np.unique(owner * (events.n_items + 1) + items, return_index=True)[1])
        owner, items = owner[first], items[first]
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(cases)))]), items


@torch.inference_mode()
def compute_ranks(
    model: Any,
    events: Events,
    cases: Cases,
    *,
    exclude: Exclude = "seen",
    batch_size: int = 256,
    item_block: int | None = None,
    top: int = 0,
    request_time: bool = True,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    part: tuple[int, int] = (0, 1),
) -> Ranks:
    """Rank the targets of every case among all items.

    Parameters
    ----------
    model
        Anything with ``max_length``, ``catalogue()`` and ``scorer(history, catalogue)``, see
        `ensuite.models.base`.
    events
        The whole log, ``dataset.events("all")``: cases point into it.
    exclude
        "seen" leaves out every item of the user's history, however far back, also beyond what the model
        reads.
    item_block
        Items scored at a time; by default as many as fit in `SCORES_HELD` scores.
    top
        Also keep each case's best ``top`` items: coverage, novelty, Gini and diversity need them.
    request_time
        Whether models that read it are told when the target was asked for.
    part
        (rank, world) of this process among those that share the work; see `gather`.

    Raises
    ------
    NaNScores
        When a score is NaN.
    """
    if exclude not in ("seen", "none"):
        raise EnsuiteError(f"exclude = {exclude!r}: 'seen' or 'none' is needed")
    if top > events.n_items:
        raise EnsuiteError(f"lists of {top} items were asked for, the catalogue has {events.n_items}")
    offsets, target = truth(events, cases)
    rank = np.full(len(target), np.nan)
    ties = np.zeros(len(target), np.int64)
    n_candidates = np.zeros(len(cases), np.int64)
    lists = np.zeros((len(cases), top), np.int64) if top else None
    done = [np.zeros(0, np.int64)]
    batches = score_batches(
        model,
        events,
        cases,
        batch_size=batch_size,
        item_block=item_block,
        request_time=request_time,
        device=device,
        progress=progress,
        part=part,
    )
    for batch in batches:
        which = batch.which
        row, at = ragged_rows(offsets[which], offsets[which + 1])  # [T'], [T']
        seen = seen_pairs(events, cases.take(which)) if exclude == "seen" else None
        counter = Counter(row, target[at], cases.user[which], batch.device, top)
        counter.count(batch, seen)
        rank[at], ties[at] = counter.ranks()
        n_candidates[which] = counter.n_candidates.cpu().numpy()
        if lists is not None:
            lists[which] = counter.lists()
        done.append(which)
    mine = np.sort(np.concatenate(done))
    everything = Ranks(
        case=np.arange(len(cases)),
        user=cases.user,
        history_length=cases.history_end - cases.history_start,
        n_candidates=n_candidates,
        offsets=offsets,
        target=target,
        rank=rank,
        ties=ties,
        n_items=events.n_items,
        lists=lists,
    )
    return everything if len(mine) == len(cases) else everything.take(mine)


def seen_pairs(events: Events, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Return (case, item row) of every event before the targets, in no order: [N] int64 each."""
    row, at = ragged_rows(cases.history_start, cases.history_end)
    return row, events.item_idx[at].astype(np.int64)


def merge(parts: Sequence[Ranks]) -> Ranks:
    """Put the shares of several processes together, in case order."""
    whole = parts[0]
    if len(parts) == 1:
        return whole
    columns = ("case", "user", "history_length", "n_candidates", "target", "rank", "ties")
    joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in columns}
    joined["offsets"] = np.concatenate([[0], np.cumsum(np.concatenate([p.n_targets for p in parts]))])
    if whole.lists is not None:
        joined["lists"] = np.concatenate([p.lists for p in parts if p.lists is not None])
    return replace(whole, **joined).take(np.argsort(joined["case"], kind="stable"))


def gather(ranks: Ranks) -> Ranks:
    """Put the shares of all processes of the default group together; every process gets the whole.

    Metrics are computed from the gathered ranks, never averaged over processes, so that they equal those of
    one process to the last digit. Without an initialised process group, ``ranks`` is returned as it is.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ranks
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, ranks)
    return merge(parts)
