"""Ranks among sampled negatives, to repeat published numbers; never the headline.

Sampled metrics do not order models as full ranking does (Krichene and Rendle, KDD 2020). They exist under
their own names, ``ndcg@10/uniform-100``, and ties count half as everywhere: a constant scorer gets the
middle rank, not the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ensuite.data.dataset import Cases, Events
from ensuite.errors import EnsuiteError
from ensuite.evaluate.counting import NaNScores
from ensuite.evaluate.metrics import Metric
from ensuite.evaluate.ranks import Exclude, Ranks, seen_pairs, truth
from ensuite.evaluate.scoring import Progress, score_batches

DRAWN_AT_ONCE = 4096  # cases


def draw_negatives(
    events: Events,
    cases: Cases,
    n: int,
    weights: np.ndarray | None = None,
    *,
    exclude: Exclude = "seen",
    seed: int = 0,
) -> np.ndarray:
    """Draw ``n`` different items for each case, none of them a target and, with ``exclude="seen"``, none of
    its history.

    Parameters
    ----------
    weights
        Chance of each item row, not normalised, [V + 1]; uniform when None. Draws are without replacement:
        each next item is drawn with these weights among those that are left.

    Returns
    -------
    Item rows: [C, n] int64.
    """
    base = events.n_items + 1
    chance = np.ones(base) if weights is None else np.asarray(weights, np.float64).copy()
    chance[0] = 0.0
    steps = np.cumsum(chance / chance.sum())
    possible = int((chance > 0).sum())
    offsets, target = truth(events, cases)
    owner = np.repeat(np.arange(len(cases)), np.diff(offsets))
    out = np.zeros((len(cases), n), np.int64)
    for at in range(0, len(cases), DRAWN_AT_ONCE):
        rng = np.random.default_rng([seed, at])
        some = cases.take(np.arange(at, min(at + DRAWN_AT_ONCE, len(cases))))
        mine = (owner >= at) & (owner < at + len(some))
        taken = (owner[mine] - at) * base + target[mine]  # a pair (case, item) is case * (V + 1) + item
        if exclude == "seen":
            row, item = seen_pairs(events, some)
            taken = np.concatenate([taken, row * base + item])
        taken = np.unique(taken)
        left = possible - np.bincount(taken[chance[taken % base] > 0] // base, minlength=len(some))
        if left.min() < n:
            raise EnsuiteError(
                f"{n} negatives were asked for, but only {left.min()} items are left for user row "
                f"{some.user[left.argmin()]} (of {events.n_items} items); sample fewer"
            )
        out[at : at + len(some)] = _draw(rng, steps, taken, len(some), n)
    return out


def _draw(rng: np.random.Generator, steps: np.ndarray, taken: np.ndarray, n_rows: int, n: int) -> np.ndarray:
    """Draw with replacement and keep, in order, what is neither taken nor drawn before, until every row has
    ``n``.
    """
    base = len(steps)
    out = np.zeros((n_rows, n), np.int64)
    have = np.zeros(n_rows, np.int64)
    spare = 8  # doubled each round: rare items may be all that is left
    while (short := np.flatnonzero(have < n)).size:
        width = int((n - have[short]).max()) + spare
        spare = min(2 * spare, 1 << 16)
        items = np.minimum(np.searchsorted(steps, rng.random((len(short), width)), side="right"), base - 1)
        keys = (short[:, None] * base + items).ravel()
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        fresh = first & ~np.isin(keys, taken)
        keys = keys[fresh]
        row, item = keys // base, keys % base
        place = have[row] + np.arange(len(row)) - np.searchsorted(row, row)
        row, item, place, keys = (x[place < n] for x in (row, item, place, keys))
        out[row, place] = item
        have += np.bincount(row, minlength=n_rows)
        taken = np.union1d(taken, keys)
    return out


@torch.inference_mode()
def compute_sampled_ranks(
    model: Any,
    events: Events,
    cases: Cases,
    negatives: np.ndarray,
    name: str,
    *,
    batch_size: int = 256,
    item_block: int | None = None,
    request_time: bool = True,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    part: tuple[int, int] = (0, 1),
) -> Ranks:
    """Rank the targets of every case among its targets and its ``negatives`` [C, N].

    ``name`` says how they were drawn, ``uniform-100`` say, and is what metrics over these ranks must be
    called by.
    """
    offsets, target = truth(events, cases)
    most = int(np.diff(offsets).max(initial=1))
    nth = np.arange(len(target)) - np.repeat(offsets[:-1], np.diff(offsets))
    owner = np.repeat(np.arange(len(cases)), np.diff(offsets))
    listed = np.zeros((len(cases), most), np.int64)  # [C, M], the targets, 0 where a case has fewer
    listed[owner, nth] = target
    items = np.concatenate([listed, negatives], 1)  # [C, M + N]
    scores = np.full(items.shape, -np.inf, np.float32)
    done = [np.zeros(0, np.int64)]
    for batch in score_batches(
        model,
        events,
        cases,
        batch_size=batch_size,
        item_block=item_block,
        request_time=request_time,
        device=device,
        progress=progress,
        part=part,
    ):
        asked = torch.from_numpy(items[batch.which]).to(batch.device)
        found = torch.full(asked.shape, -torch.inf, device=batch.device)
        for first, last in batch.blocks:
            here = (asked >= first) & (asked < last)
            values = batch.scores(first, last).gather(1, (asked - first).clamp(0, last - first - 1)).float()
            found = torch.where(here, values, found)
        if found.isnan().any():
            raise NaNScores(int(cases.user[batch.which[int(found.isnan().any(1).nonzero()[0, 0])]]))
        scores[batch.which] = found.cpu().numpy()
        done.append(batch.which)
    own = scores[owner, nth]  # [T]
    rank = np.zeros(len(target))
    ties = np.zeros(len(target), np.int64)
    for at in range(0, len(target), 1 << 16):
        part_of = slice(at, at + (1 << 16))
        others, mine = scores[owner[part_of]], own[part_of, None]
        ties[part_of] = (others == mine).sum(1) - 1
        rank[part_of] = 1.0 + (others > mine).sum(1) + ties[part_of] / 2
    whole = Ranks(
        case=np.arange(len(cases)),
        user=cases.user,
        history_length=cases.history_end - cases.history_start,
        n_candidates=np.diff(offsets) + negatives.shape[1],
        offsets=offsets,
        target=target,
        rank=np.where(own > -np.inf, rank, np.inf),
        ties=np.where(own > -np.inf, ties, 0),
        n_items=events.n_items,
        candidates=name,
    )
    return whole.take(np.sort(np.concatenate(done)))


def sampler_of(metric: Metric) -> tuple[str, int]:
    """Return how a sampled metric's negatives are drawn: ("uniform" or "popularity", how many)."""
    kind, _, n = metric.candidates.rpartition("-")
    return kind, int(n)
