"""Cross-entropy over the whole catalogue, exact, without ever holding the logits of a batch.

Plain: ``F.cross_entropy(output @ vectors.T, targets)`` keeps T x V logits, their softmax and their gradient:
10 GB for 25,600 positions and 100,000 items. The chunked form visits the logits a cache-full at a time. With
``p = softmax(s)``, the gradient of ``logsumexp(s) - s[target]`` with respect to the logits is ``p``
less 1 at the target: known as soon as a chunk's softmax is. So the forward pass also forms, from that ``g``,
the gradients ``g E`` and ``g^T H``, and nothing is recomputed: three matrix products, as many as the plain
form needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensuite.objectives.base import ItemVectors

CACHE_BYTES = 1 << 23  # a chunk of logits that stays in a CPU's cache
WHOLE_BYTES = 1 << 27  # the largest chunk of whole rows of logits; longer rows are cut into blocks of items


class CrossEntropy(nn.Module):
    """Full cross-entropy as an `Objective`: the mean of ``-log softmax(scores / temperature)[target]``.

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
    logits = (
        (output @ table[1:].T).float() if output.dtype != torch.float64 else output @ table[1:].T
    )  # [T, V]
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
        Positions and items in a chunk of logits; chosen from V and the device when not given. With fewer than
        V items in a block the log-sum-exp is gathered online over the blocks, and the logits are computed
        twice.

    Notes
    -----
    The mean score that label smoothing needs is ``mean(output) . mean(vectors)``: no logits take part in it.

    >>> chunked_cross_entropy(torch.zeros(2, 4), torch.zeros(11, 4), torch.tensor([1, 10])).exp()
    tensor(10.)
    """
    if len(output) == 0:
        return output.sum() * 0.0
    scaled = output if temperature == 1.0 else output / temperature
    loss = _Chunked.apply(scaled, table, targets, 1.0 - label_smoothing, None, chunk_rows, block)
    if label_smoothing:
        wide = torch.promote_types(torch.promote_types(output.dtype, table.dtype), torch.float32)
        with torch.autocast(output.device.type, enabled=False):
            mean = scaled.mean(0, dtype=wide) @ table[1:].mean(0, dtype=wide)
        loss = loss - label_smoothing * mean
    return loss


def chunked_log_sum_exp(
    output: Tensor,
    table: Tensor,
    counts: Tensor | None = None,
    chunk_rows: int | None = None,
    block: int | None = None,
) -> Tensor:
    """Compute the mean over T positions of ``log sum_j exp(output . table[j])``, j = 1..V: a scalar.

    ``counts`` [T], above 0, says how often each position counts in the mean; for the rest see
    `chunked_cross_entropy`. Losses against a known distribution over all items are this less a mean score.

    >>> chunked_log_sum_exp(torch.zeros(2, 4), torch.zeros(11, 4)).exp()
    tensor(10.)
    """
    if len(output) == 0:
        return output.sum() * 0.0
    any_item = torch.ones(len(output), dtype=torch.int64, device=output.device)
    return _Chunked.apply(output, table, any_item, 0.0, counts, chunk_rows, block)


@dataclass
class _Task:
    """What the two loops over chunks share; they add to the gradients of the sum over positions."""

    h: Tensor  # [T, D], in the dtype of the products
    e: Tensor  # [V, D], likewise
    target: Tensor  # [T], 0..V-1
    weight: float
    counts: Tensor | None  # [T], how often each position counts; None: once
    rows: int
    block: int
    wide: torch.dtype  # of sums, softmax and gradients
    grad_h: Tensor | None  # [T, D]
    grad_table: Tensor | None  # [V + 1, D]

    def buffers(self) -> tuple[Tensor, Tensor]:
        """Return room for a chunk's logits and for its softmax: the same room, when their dtypes agree."""
        logits = self.h.new_empty(min(self.rows, len(self.h)) * self.block)
        return logits, logits if self.h.dtype == self.wide else torch.empty_like(logits, dtype=self.wide)

    def wants_gradient(self) -> bool:
        return self.grad_h is not None or self.grad_table is not None

    def counted(self, values: Tensor) -> Tensor:
        """Multiply a number or a vector of each position, [T] or [T, D], by how often the position counts."""
        if self.counts is None:
            return values
        return values * (self.counts if values.dim() == 1 else self.counts[:, None]).to(values.dtype)


class _Chunked(torch.autograd.Function):
    """The mean of ``logsumexp(s) - weight * s[target]``, each position taken ``counts`` times; its gradients
    are formed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        table: Tensor,
        targets: Tensor,
        weight: float,
        counts: Tensor | None,
        rows: int | None,
        block: int | None,
    ) -> Tensor:
        device = output.device.type
        wide = torch.promote_types(torch.promote_types(output.dtype, table.dtype), torch.float32)
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        plan = _plan(len(table) - 1, device)
        with torch.autocast(device, enabled=False):
            task = _Task(
                h=output.detach().to(compute),
                e=table.detach()[1:].to(compute),
                target=targets - 1,
                weight=weight,
                counts=None if counts is None else counts.to(wide),
                rows=rows or plan[0],
                block=min(block or plan[1], len(table) - 1),
                wide=wide,
                grad_h=torch.empty_like(output, dtype=wide) if ctx.needs_input_grad[0] else None,
                grad_table=torch.zeros_like(table, dtype=wide) if ctx.needs_input_grad[1] else None,
            )
            loss = _whole_rows(task) if task.block == len(task.e) else _by_blocks(task)
            if task.grad_h is not None:
                task.grad_h = task.counted(task.grad_h)
        ctx.save_for_backward(task.grad_h, task.grad_table)
        ctx.dtypes = output.dtype, table.dtype
        ctx.n = len(output) if counts is None else float(counts.sum())
        return loss / ctx.n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by = grads[0] / ctx.n
        h, table = (None if g is None else (g * by).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes))
        return h, table, None, None, None, None, None


def _plan(n_items: int, device: str) -> tuple[int, int]:
    """Choose how many positions and items make a chunk (measured on two cores with 32 MB of cache)."""
    if device != "cpu":
        rows = WHOLE_BYTES // (4 * n_items)
        return (rows, n_items) if rows >= 256 else (4096, WHOLE_BYTES // (4 * 4096))
    if 64 * 4 * n_items <= CACHE_BYTES:
        return 64, n_items
    rows = min(256, WHOLE_BYTES // (4 * n_items))
    return (rows, n_items) if rows >= 128 else (512, 2048)


def _whole_rows(task: _Task) -> Tensor:
    """Chunks of positions against all items: one softmax serves the loss and both gradients."""
    h, e, n_items = task.h, task.e, len(task.e)
    logits, soft = task.buffers()
    counted = task.counted(h)
    score, log_p = (h.new_empty(len(h), dtype=task.wide) for _ in range(2))  # of the targets: [T]
    for at in range(0, len(h), task.rows):
        chunk, index = h[at : at + task.rows], task.target[at : at + task.rows, None]  # [R, D], [R, 1]
        s, p = (room[: len(chunk) * n_items].view(-1, n_items) for room in (logits, soft))  # [R, V]
        torch.mm(chunk, e.T, out=s)
        score[at : at + task.rows] = s.gather(1, index)[:, 0]
        torch.softmax(s, 1, dtype=task.wide, out=p)
        log_p[at : at + task.rows] = p.gather(1, index)[:, 0].log_()
        if task.wants_gradient():
            p.scatter_add_(1, index, p.new_full((1, 1), -task.weight).expand_as(index))
            g = p.to(h.dtype)
        if task.grad_h is not None:
            task.grad_h[at : at + task.rows] = g @ e
        if task.grad_table is not None:
            _add_product(task.grad_table[1:], g.T, counted[at : at + task.rows])
    # Where the target's probability is below the float range, the logits themselves give the log-sum-exp.
    for some in (log_p < -60).nonzero()[:, 0].split(task.rows):
        log_p[some] = score[some] - (h[some] @ e.T).to(task.wide).logsumexp(1)
    return task.counted((1.0 - task.weight) * score - log_p).sum()


def _by_blocks(task: _Task) -> Tensor:
    """Chunks of positions against blocks of items, twice: for the log-sum-exp, then for the gradients.

    The softmax over all items is that over the block times ``exp(log z of the block - log z)``: a factor for
    each position, laid on its output vector and on its gradient instead of on the logits.
    """
    h, e, n = task.h, task.e, len(task.h)
    firsts = range(0, len(e), task.block)
    logits, soft = task.buffers()
    log_zs = h.new_empty(len(firsts), n, dtype=task.wide)  # of each block: [blocks, T]

    def softmax(at: int, items: Tensor) -> tuple[Tensor, Tensor]:
        chunk = h[at : at + task.rows]
        s, p = (room[: len(chunk) * len(items)].view(-1, len(items)) for room in (logits, soft))  # [R, K]
        torch.mm(chunk, items.T, out=s)
        most = s.amax(1).to(task.wide)
        return torch.softmax(s, 1, dtype=task.wide, out=p), most

    for k, first in enumerate(firsts):
        for at in range(0, n, task.rows):
            p, most = softmax(at, e[first : first + task.block])
            log_zs[k, at : at + task.rows] = most - p.amax(1).log_()  # the largest is exp(0) / z
    log_z = log_zs.logsumexp(0)  # [T]
    score = (h * e[task.target]).sum(1, dtype=task.wide)
    loss = task.counted(log_z - task.weight * score).sum()
    if not task.wants_gradient():
        return loss
    if task.grad_h is not None:
        torch.mul(e[task.target], -task.weight, out=task.grad_h)
    if task.grad_table is not None:
        counted = task.counted(h)
        task.grad_table.index_add_(0, task.target + 1, counted.to(task.wide), alpha=-task.weight)
    for k, first in enumerate(firsts):
        items, share = e[first : first + task.block], log_zs[k].sub_(log_z).exp_()[:, None]  # [K, D], [T, 1]
        for at in range(0, n, task.rows):
            g = softmax(at, items)[0].to(h.dtype)
            part = slice(at, at + task.rows)
            if task.grad_h is not None:
                task.grad_h[part].addcmul_((g @ items).to(task.wide), share[part])
            if task.grad_table is not None:
                _add_product(
                    task.grad_table[1 + first : 1 + first + len(items)],
                    g.T,
                    (counted[part] * share[part]).to(h.dtype),
                )
    return loss


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to ``total``; sums over chunks are kept in ``total``'s wider dtype."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
