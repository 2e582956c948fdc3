"""Does the graph answer as the model does? Asked with made-up histories of all lengths, and every filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.serve.engine import Engine, ModelEngine
from ensuite.serve.top_k import top_k

TOLERANCE = 1e-4
"""How far scores may differ, as a share of the largest one: what the order of float32 sums comes to."""
LEAST_SHARED = 0.5
"""Share of the best ten that a graph of another precision must keep."""
BEST = 10


@dataclass(frozen=True)
class Check:
    """How far a graph's answers are from the model's."""

    lists: int
    """Lists compared."""
    difference: float
    """Largest difference of two scores at one place of a list, as a share of the largest score."""
    moved: int
    """Places of all lists that hold another item than the model's: of scores as good as equal."""
    shared: float
    """Mean share of the model's best ten items among the graph's."""


def compute_check(engine: Engine, model: Model, name: str, *, exact: bool = True, seed: int = 0) -> Check:
    """Compare ``engine`` with the model on histories of 1 to `max_length` events, alone and in batches.

    Parameters
    ----------
    name
        What the engine runs, for messages.
    exact
        Whether it computes in the model's own precision; if not, only the filters must be kept exactly.

    Raises
    ------
    EnsuiteError
        When a list holds an item twice or one that is excluded, when scores differ by more than `TOLERANCE`,
        or, without ``exact``, when less than `LEAST_SHARED` of the best ten items are left.
    """
    rng = np.random.default_rng(seed)
    lists, difference, moved, shared = 0, 0.0, 0, []
    for history in _histories(model, rng):
        whole = _scores(model, history)  # [B, V + 1]
        largest = float(whole[:, 1:].abs().max().clamp(min=1e-12))
        for k, allowed, excluded in _requests(model, history, rng):
            wanted = whole.clone()
            wanted[:, 0] = -torch.inf
            if allowed is not None:
                wanted[:, ~allowed] = -torch.inf
            for row, items in zip(wanted, excluded):
                row[torch.from_numpy(items)] = -torch.inf
            scores, rows = engine.top_k(history, k, allowed, excluded)
            ideal, best = top_k(wanted, k)
            own = wanted.gather(1, rows)
            if bool(torch.isneginf(own).any()) or bool((rows.sort(1).values.diff(dim=1) == 0).any()):
                raise EnsuiteError(f"{name}: the graph recommends items twice or ones that are excluded")
            apart = max(float((scores - own).abs().max()), float((scores - ideal).abs().max())) / largest
            lists, moved = lists + len(rows), moved + int((rows != best).sum())
            difference = max(difference, apart)
            n = min(k, BEST)
            shared += [len(np.intersect1d(a, b)) / n for a, b in zip(rows[:, :n], best[:, :n])]
    check = Check(lists, difference, moved, float(np.mean(shared)))
    if exact and not difference <= TOLERANCE:
        raise EnsuiteError(
            f"{name}: the graph does not score as the model does: scores differ by up to {difference:.2g} of "
            f"the largest, {TOLERANCE:g} may be; serve it with --engine torch"
        )
    if check.shared < LEAST_SHARED:
        raise EnsuiteError(
            f"{name}: the graph keeps {check.shared:.0%} of the model's best {BEST} items, "
            f"{LEAST_SHARED:.0%} are needed; export it without --int8"
        )
    return check


@torch.inference_mode()
def _scores(model: Model, history: History) -> Tensor:
    """Return the model's scores of all rows, 0 for padding: [B, V + 1]."""
    nothing = [np.zeros(0, np.int64)] * len(history.items)
    scores, rows = ModelEngine(model).top_k(history, model.n_items, None, nothing)
    return torch.zeros(len(rows), model.n_items + 1).scatter(1, rows, scores)


def _histories(model: Model, rng: np.random.Generator) -> Iterator[History]:
    """Yield batches of one history and of many, of one event, of as many as the model reads, and between."""
    longest = model.max_length
    mixed = rng.integers(1, longest + 1, 7)
    for lengths in ([1], [longest], [1, 1, 1], [longest] * 3, [1, longest, *mixed], [max(1, longest // 2)]):
        ends = np.array(lengths)[:, None]
        real = np.arange(max(lengths)) < ends  # [B, L]
        items = rng.integers(1, model.n_items + 1, real.shape) * real
        gaps = np.exp(rng.uniform(0, 14, real.shape)).astype(np.int64)  # of seconds to weeks
        times = 1_600_000_000 + gaps.cumsum(1)
        requests = np.append(times[:, 1:], times[:, -1:] + 3_600, 1)
        yield History(*(torch.from_numpy(np.where(real, x, 0)) for x in (items, times, requests)))


def _requests(
    model: Model, history: History, rng: np.random.Generator
) -> Iterator[tuple[int, Tensor | None, list[np.ndarray]]]:
    """Yield k, allowed and excluded: the whole catalogue; the best ten unseen; one of half the catalogue."""
    nothing = [np.zeros(0, np.int64)] * len(history.items)
    yield model.n_items, None, nothing
    seen = [np.unique(row[row > 0]) for row in history.items.numpy()]
    left = model.n_items - max(map(len, seen))
    if left:
        yield min(BEST, left), None, seen
    allowed = torch.from_numpy(rng.random(model.n_items + 1) < 0.5)
    allowed[0] = False
    left = min(int(allowed.sum()) - int(allowed[items].sum()) for items in seen)
    if left:
        yield 1, allowed, seen
