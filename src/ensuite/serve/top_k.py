"""The best k of a catalogue that is scored block by block; never more than a block and k items are held."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

NARROW = 32
"""Chunks of fewer columns than this save nothing."""


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row, best first, and their columns: [B, k] each.

    Of equal scores the one further left comes first, and is the one that is kept (`torch.topk` leaves both
    open).

    >>> top_k(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]]), 3)
    (tensor([[3., 3., 2.]]), tensor([[1, 3, 2]]))
    """
    k = min(k, scores.shape[1])
    width = math.isqrt(scores.shape[1] // k)  # as many maxima as scores beside them are then looked at
    if width < NARROW:
        return _select(scores, k)
    # An item outside the k best chunks, by their maxima and ties to the left, has k better ones in them.
    whole = scores.shape[1] // width * width
    chunks = scores[:, :whole].unflatten(1, (-1, width))  # [B, C, width]
    best = _select(chunks.amax(2), k)[1].sort(1).values[:, :, None]  # [B, k, 1], from left to right
    near = chunks.gather(1, best.expand(-1, -1, width)).flatten(1)  # [B, k * width]
    columns = (best * width + torch.arange(width, device=scores.device)).flatten(1)
    if whole < scores.shape[1]:
        rest = torch.arange(whole, scores.shape[1], device=scores.device).expand(len(scores), -1)
        near, columns = torch.cat([near, scores[:, whole:]], 1), torch.cat([columns, rest], 1)
    values, place = _select(near, k)
    return values, columns.gather(1, place)


def _select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Do what `top_k` does, reading every score several times where some are equal."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if bool((values[:, :-1] > values[:, 1:]).all()):  # nearly always: nothing is left open
        return values[:, :k], columns[:, :k]
    least = values[:, k - 1 : k]  # [B, 1]
    above, equal = scores > least, scores == least
    room = k - above.sum(1, keepdim=True)
    kept = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))  # exactly k in each row
    column = kept.nonzero()[:, 1].view(len(scores), k)
    values, order = scores.gather(1, column).sort(dim=1, descending=True, stable=True)
    return values, column.gather(1, order)


def merge_top_k(blocks: Iterable[tuple[int, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return the best k over all blocks, as `top_k` does over all columns side by side: [B, k] each.

    Parameters
    ----------
    blocks
        (first column, scores [B, W]) of each block, in ascending order of columns.
    k
        How many; fewer come back when there are fewer columns.
    """
    best: tuple[Tensor, Tensor] | None = None
    for first, scores in blocks:
        values, columns = top_k(scores, k)
        columns = columns + first
        if best is not None:  # what is kept so far stands left of the block: it wins ties
            both = torch.cat([best[0], values], 1), torch.cat([best[1], columns], 1)
            values, place = top_k(both[0], k)
            columns = both[1].gather(1, place)
        best = values, columns
    if best is None:
        raise ValueError("no block of items to choose from")
    return best
