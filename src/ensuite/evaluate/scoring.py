"""How a model is asked: fixed batches of cases, each scored block of items by block of items.

The list of batches depends on the cases and the settings alone, never on how many processes share it. The
last bits of a score can depend on what stands beside it in a batch, so processes take whole batches: then
the ranks are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import case_batches
from ensuite.data.dataset import Cases, Events

SCORES_HELD = 1 << 26
"""How many scores are held at a time: 2^26 float32 are 256 MiB. Batches shrink before the catalogue is cut
into blocks, since with one block each score is computed once."""

SMALLEST_BATCH = 32

Progress = Callable[[int, int], None]
"""Called with (cases done, cases in all) after each batch."""


@dataclass(frozen=True)
class ScoredBatch:
    """One batch of cases and the function that scores items for them."""

    which: np.ndarray  # [B] int64, positions among the cases
    scores: Callable[[int, int], Tensor]  # (first, last) -> [B, last - first]
    blocks: list[tuple[int, int]]  # ranges of item rows that together cover 1..V
    device: torch.device


def item_blocks(n_items: int, width: int) -> list[tuple[int, int]]:
    """Cut item rows 1..V into ranges of at most ``width``.

    >>> item_blocks(5, 2)
    [(1, 3), (3, 5), (5, 6)]
    """
    return [(first, min(first + width, n_items + 1)) for first in range(1, n_items + 1, width)]


def plan_batches(cases: Cases, max_length: int, batch_size: int) -> list[np.ndarray]:
    """Return the positions of the cases of each batch, similar history lengths together."""
    order = np.argsort(np.minimum(cases.history_end - cases.history_start, max_length), kind="stable")
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def score_batches(
    model: Any,
    events: Events,
    cases: Cases,
    *,
    batch_size: int,
    item_block: int | None,
    request_time: bool,
    device: torch.device | str | None,
    progress: Progress | None,
    part: tuple[int, int],
) -> Iterator[ScoredBatch]:
    """Yield this process's share of the batches, ``part = (rank, world)``: batches rank, rank + world, ...

    The model is put into evaluation mode meanwhile. Call it under `torch.inference_mode`.
    """
    rank, world = part
    if item_block is None:
        batch_size = min(batch_size, max(SMALLEST_BATCH, SCORES_HELD // events.n_items))
        item_block = max(1, SCORES_HELD // batch_size)
    blocks = item_blocks(events.n_items, item_block)
    where = torch.device(device) if device is not None else model_device(model)
    batches = plan_batches(cases, model.max_length, batch_size)[rank::world]
    total, done = sum(map(len, batches)), 0
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()
    try:
        catalogue = model.catalogue() if batches else None
        for which in batches:
            asked = cases.take(which)
            _, history = next(
                case_batches(
                    events,
                    asked,
                    max_length=model.max_length,
                    batch_size=len(which),
                    request_time=request_time,
                )
            )
            yield ScoredBatch(which, model.scorer(history.to(where), catalogue), blocks, where)
            done += len(which)
            if progress is not None:
                progress(done, total)
    finally:
        if was_training:
            model.train()


def model_device(model: Any) -> torch.device:
    """Return where the model's first parameter or buffer lies; the CPU when it has none."""
    if isinstance(model, torch.nn.Module):
        for tensors in (model.parameters(), model.buffers()):
            for tensor in tensors:
                return tensor.device
    return torch.device("cpu")


def ragged_rows(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (range, row) of every row of the ranges ``start[b]:end[b]``: [N] int64 each.

    >>> [x.tolist() for x in ragged_rows(np.array([0, 7]), np.array([2, 8]))]
    [[0, 0, 1], [0, 1, 7]]
    """
    lengths = end - start
    before = np.cumsum(lengths) - lengths
    which = np.repeat(np.arange(len(start)), lengths)
    return which, np.arange(len(which)) + np.repeat(start - before, lengths)
