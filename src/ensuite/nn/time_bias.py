"""Relative bias by time (HSTU): one learned number for each bucket of |query time - key time|."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUCKETS = 129  # 0..128, as released
BUCKET_WIDTH = 0.301  # of ln(seconds), as released


def time_buckets(query: Tensor, key: Tensor) -> Tensor:
    """Return floor(ln(max(1, |query - key|)) / 0.301), at most 128, of every pair of times.

    Parameters
    ----------
    query, key
        Times in seconds: [..., Q] and [..., K] int64.

    Returns
    -------
    Tensor
        [..., Q, K] int32.

    Examples
    --------
    >>> time_buckets(torch.tensor([86_400]), torch.tensor([0, 86_399, 82_800])).tolist()
    [[37, 0, 27]]
    """
    # subtracted as integers: float32 does not hold a time in seconds exactly, only a short gap
    gap = (query[..., :, None] - key[..., None, :]).float()
    return gap.abs_().clamp_(min=1.0).log_().div_(BUCKET_WIDTH).clamp_(max=BUCKETS - 1).int()


class _Lookup(torch.autograd.Function):
    """``table[index]`` whose gradient is a histogram: the scatter of plain indexing is many times slower."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(index)
        ctx.rows = len(table)
        return table.index_select(0, index.flatten()).view(index.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return histogram(index, grad, ctx.rows), None


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return ``table[index]`` for a one-dimensional ``table`` and an integer ``index`` of any shape."""
    return _Lookup.apply(table, index)


def histogram(index: Tensor, weights: Tensor, rows: int) -> Tensor:
    """Sum ``weights`` by ``index``, whole numbers below ``rows``: [rows], float32 or float64."""
    return torch.bincount(index.flatten(), weights.flatten(), rows)
