"""Cross-entropy over the whole catalogue, exact, without ever holding the logits of a batch.

Plain: ``F.cross_entropy(output @ vectors.T, targets)`` keeps T x V logits, their softmax and their gradient: 10 GB for
25,600 positions and 100,000 items. The chunked form visits the logits a cache-full at a time. With ``p = softmax(s)``, the
gradient of ``logsumexp(s) - s[target]`` with respect to the logits is ``p - onehot(target)``, known as soon as a chunk's
softmax is: so the forward pass also forms ``dH = (p - onehot) E`` and ``dE = (p - onehot)^T H`` and nothing is recomputed
(three matrix products, as many as the plain form needs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensuite.objectives.base import ItemVectors

CHUNK_BYTES = 1 << 21  # logits held at a time on a CPU: they stay in the second and third level caches
CUDA_CHUNK_BYTES = 1 << 28
BLOCK = 8192  # items in a block, once a row of logits alone outgrows the caches


class CrossEntropy(nn.Module):
    """Full cross-entropy as an `Objective`: the mean over positions of ``-log softmax(scores / temperature)[target]``.

    Parameters
    ----------
    temperature
        Scores are divided by it; above 0.
    label_smoothing
        Share of the probability that is spread over all V items alike; in [0, 1).
    chunked
        False computes the same by `plain_cross_entropy`: for tests and for measuring.
    """

    def __init__(self, temperature: float = 1.0, label_smoothing: float = 0.0, chunked: bool = True):
        super().__init__()
        self.temperature = temperature
        self.label_smoothing = label_smoothing
        self.chunked = chunked

    def forward(self, output: Tensor, targets: Tensor, vectors: ItemVectors, row: Tensor) -> Tensor:
        compute = chunked_cross_entropy if self.chunked else plain_cross_entropy
        return compute(output, vectors(None), targets, self.temperature, self.label_smoothing)


def plain_cross_entropy(
    output: Tensor, table: Tensor, targets: Tensor, temperature: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Compute the cross-entropy with all logits in memory; row 0 of ``table`` is padding and no candidate.

    >>> plain_cross_entropy(torch.zeros(2, 4), torch.zeros(11, 4), torch.tensor([1, 10])).exp()
    tensor(10.)
    """
    logits = (output @ table[1:].T).float() if output.dtype != torch.float64 else output @ table[1:].T  # [T, V]
    return F.cross_entropy(logits / temperature, targets - 1, label_smoothing=label_smoothing)


def chunked_cross_entropy(
    output: Tensor,
    table: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    block: int | None = None,
) -> Tensor:
    """Compute what `plain_cross_entropy` computes, in memory that does not grow with T x V.

    Parameters
    ----------
    output
        [T, D]; under autocast the products run in its dtype, the log-sum-exp in float32 always.
    table
        Item vectors of rows 0..V: [V + 1, D]. Row 0, padding, is no candidate and its gradient is zero.
    targets
        [T] int64, 1..V.
    chunk_rows, block
        Positions and items in a chunk of logits; chosen from V and the device when not given. With fewer than V items
        in a block the log-sum-exp is gathered online over the blocks, and the logits are computed twice.

    Notes
    -----
    The mean score that label smoothing needs is ``mean(output) . mean(vectors)``: no logits take part in it.

    >>> chunked_cross_entropy(torch.zeros(2, 4), torch.zeros(11, 4), torch.tensor([1, 10])).exp()
    tensor(10.)
    """
    if len(output) == 0:
        return output.sum() * 0.0
    scaled = output if temperature == 1.0 else output / temperature
    loss = _Chunked.apply(scaled, table, targets, 1.0 - label_smoothing, chunk_rows, block)
    if label_smoothing:
        wide = torch.promote_types(torch.promote_types(output.dtype, table.dtype), torch.float32)
        with torch.autocast(output.device.type, enabled=False):
            mean = scaled.mean(0, dtype=wide) @ table[1:].mean(0, dtype=wide)
        loss = loss - label_smoothing * mean
    return loss


class _Chunked(torch.autograd.Function):
    """mean over positions of ``logsumexp(s) - weight * s[target]``, its gradients formed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, table: Tensor, targets: Tensor, weight: float, rows: int | None, block: int | None
    ) -> Tensor:
        device = output.device.type
        wide = torch.promote_types(torch.promote_types(output.dtype, table.dtype), torch.float32)
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        need = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        with torch.autocast(device, enabled=False):
            h, e = output.detach().to(compute), table.detach()[1:].to(compute)  # [T, D], [V, D]
            n_items = len(e)
            budget = CHUNK_BYTES if device == "cpu" else CUDA_CHUNK_BYTES
            block = block or (n_items if n_items <= 4 * BLOCK else BLOCK)
            rows = rows or max(128, budget // (4 * min(block, n_items)))
            run = _whole_rows if block >= n_items else _by_blocks
            loss, grad_output, grad_table = run(h, e, targets - 1, weight, rows, block, need, wide)
        ctx.save_for_backward(grad_output, grad_table)
        ctx.dtypes = output.dtype, table.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = [None if g is None else (g * grads[0]).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes)]
        return saved[0], saved[1], None, None, None, None


def _whole_rows(
    h: Tensor, e: Tensor, target: Tensor, weight: float, rows: int, block: int, need: tuple[bool, bool], wide: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Chunks of ``rows`` positions against all items."""
    n, n_items = len(h), len(e)
    logits = h.new_empty(min(rows, n), n_items)
    soft = logits if h.dtype == wide else h.new_empty(logits.shape, dtype=wide)
    grad_h = torch.empty_like(h, dtype=wide) if need[0] else None
    grad_table = h.new_zeros(n_items + 1, h.shape[1], dtype=wide) if need[1] else None
    score, log_p = (h.new_empty(n, dtype=wide) for _ in range(2))  # of the targets: [T]
    for at in range(0, n, rows):
        chunk, index = h[at : at + rows], target[at : at + rows, None]  # [R, D], [R, 1]
        s, p = logits[: len(chunk)], soft[: len(chunk)]  # [R, V]
        torch.mm(chunk, e.T, out=s)
        score[at : at + rows] = s.gather(1, index)[:, 0]
        torch.softmax(s, 1, dtype=wide, out=p)
        log_p[at : at + rows] = p.gather(1, index)[:, 0].log_()
        if need == (False, False):
            continue
        p.scatter_add_(1, index, p.new_full((1, 1), -weight).expand_as(index))
        g = p.to(h.dtype)
        if grad_h is not None:
            grad_h[at : at + rows] = g @ e
        if grad_table is not None:
            _add_product(grad_table[1:], g.T, chunk)
    # A target's probability below the float range: its log-sum-exp is taken from the logits themselves.
    lost = (log_p < -60).nonzero()[:, 0]
    for some in lost.split(rows):
        s = (h[some] @ e.T).to(wide)
        log_p[some] = score[some] - s.logsumexp(1)
    loss = ((1.0 - weight) * score - log_p).mean()
    return loss, _scale(grad_h, 1 / n), _scale(grad_table, 1 / n)


def _by_blocks(
    h: Tensor, e: Tensor, target: Tensor, weight: float, rows: int, block: int, need: tuple[bool, bool], wide: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Chunks of ``rows`` positions against ``block`` items: first the log-sum-exp online, then the gradients."""
    n, n_items = len(h), len(e)
    log_z = h.new_full((n,), -torch.inf, dtype=wide)  # [T]
    for first in range(0, n_items, block):
        items = e[first : first + block]  # [K, D]
        for at in range(0, n, rows):
            part = (h[at : at + rows] @ items.T).to(wide).logsumexp(1)
            torch.logaddexp(log_z[at : at + rows], part, out=log_z[at : at + rows])
    score = (h * e[target]).sum(1, dtype=wide)
    loss = (log_z - weight * score).mean()
    grad_h = torch.zeros_like(h, dtype=wide) if need[0] else None
    grad_table = h.new_zeros(n_items + 1, h.shape[1], dtype=wide) if need[1] else None
    if need == (False, False):
        return loss, None, None
    for first in range(0, n_items, block):
        items = e[first : first + block]
        for at in range(0, n, rows):
            chunk = h[at : at + rows]
            p = (chunk @ items.T).to(wide).sub_(log_z[at : at + rows, None]).exp_()  # [R, K]
            g = p.to(h.dtype)
            if grad_h is not None:
                _add_product(grad_h[at : at + rows], g, items)
            if grad_table is not None:
                _add_product(grad_table[1 + first : 1 + first + block], g.T, chunk)
    if grad_h is not None:
        grad_h.sub_(e[target], alpha=weight)
    if grad_table is not None:
        grad_table.index_add_(0, target + 1, h.to(wide), alpha=-weight)
    return loss, _scale(grad_h, 1 / n), _scale(grad_table, 1 / n)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``; sums over chunks are kept in ``total``'s wider dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)


def _scale(value: Tensor | None, by: float) -> Tensor | None:
    return None if value is None else value.mul_(by)
