"""The loss over one positive and N negatives, and its gradients, in one pass over chunks of positions.

Autograd keeps for the backward pass whatever the forward pass made: the [T, N, D] vectors of the negatives,
or the T x V scores. Here a chunk's scores give its losses, their derivatives, and at once its part of the
gradients, so that memory holds one chunk. The scores of a chunk come in one of three ways:

- *gather*: the vectors of each position's negatives, [R, N, D]; 2 N D multiplications but random reads and
  writes;
- *dense*: the scores of all items, [R, V], by a matrix product, N of which are read. On a catalogue of
  thousands of items this is the faster from a few dozen negatives on;
- *shared*: where positions share their negatives, one product with those N vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Head = Callable[[Tensor, Tensor], Tensor]
"""``head(positive [T], negative [T, N])`` gives the loss of each position: [T]. A score of -inf takes no
part."""

Way = Literal["gather", "dense", "shared"]

CHUNK_BYTES = 1 << 21  # scores or gathered vectors held at a time on a CPU: they stay in its caches
CUDA_CHUNK_BYTES = 1 << 28


@dataclass(frozen=True)
class Drawn:
    """The negatives of T positions: ``items`` [T, N]; or [S, N] and ``group`` [T], ascending; or [N]."""

    items: Tensor
    group: Tensor | None = None

    @property
    def count(self) -> int:
        """N, the negatives of one position."""
        return self.items.shape[-1]

    def at(self, first: int, last: int) -> Tensor:
        """Return the negatives of positions ``first..last-1``: [R, N]."""
        if self.items.ndim == 1:
            return self.items[None].expand(last - first, -1)
        return self.items[first:last] if self.group is None else self.items[self.group[first:last]]

    def runs(self, n_positions: int, rows: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, last, s): neighbouring positions, at most ``rows``, that share row s of S."""
        sizes = [n_positions] if self.group is None else torch.bincount(self.group).tolist()
        start = 0
        for s, size in enumerate(sizes):
            for first in range(start, start + size, rows):
                yield first, min(first + rows, start + size), s
            start += size


def fused_loss(
    output: Tensor,
    table: Tensor,
    targets: Tensor,
    drawn: Drawn,
    head: Head,
    way: Way,
    bias: Tensor | None = None,
    compact: bool = False,
) -> Tensor:
    """Return the mean of ``head`` over the positions: a scalar, differentiable once.

    Parameters
    ----------
    output
        Encoder output: [T, D].
    table
        Item vectors of rows 0..V: [V + 1, D].
    targets, drawn
        The positives, 1..V: [T] int64; and the negatives. A negative that equals the positive takes no part.
    way
        How scores are computed; each gives the same loss. ``shared`` asks for negatives that are shared.
    bias
        Added to an item's score where it is a negative: [V + 1].
    compact
        ``table`` holds, instead of all rows, those of ``targets`` and then of ``drawn.items``, in their
        order.
    """
    return _Fused.apply(output, table, targets, drawn, head, way, bias, compact)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        table: Tensor,
        targets: Tensor,
        drawn: Drawn,
        head: Head,
        way: Way,
        bias: Tensor | None,
        compact: bool,
    ) -> Tensor:
        device = output.device.type
        wide = torch.promote_types(torch.promote_types(output.dtype, table.dtype), torch.float32)
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        where, drawn_where = targets, drawn
        if compact:
            rows = torch.arange(len(table), device=targets.device)
            where, drawn_where = (
                rows[: len(targets)],
                Drawn(rows[len(targets) :].view_as(drawn.items), drawn.group),
            )
        with torch.autocast(device, enabled=False):
            pass_ = _Pass(
                h=output.detach().to(compute),
                e=table.detach().to(compute),
                targets=targets,
                drawn=drawn,
                where=where,
                drawn_where=drawn_where,
                head=head,
                bias=bias,
                wide=wide,
                grad_h=torch.empty_like(output, dtype=wide) if ctx.needs_input_grad[0] else None,
                grad_e=torch.zeros_like(table, dtype=wide) if ctx.needs_input_grad[1] else None,
                budget=CHUNK_BYTES if device == "cpu" else CUDA_CHUNK_BYTES,
            )
            loss = {"gather": pass_.gather, "dense": pass_.dense, "shared": pass_.shared}[way]()
        ctx.save_for_backward(pass_.grad_h, pass_.grad_e)
        ctx.dtypes = output.dtype, table.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, e = (None if g is None else (g * grads[0]).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes))
        return h, e, None, None, None, None, None, None


@dataclass
class _Pass:
    """One visit of all positions."""

    h: Tensor  # [T, D], in the dtype of the products
    e: Tensor  # [V + 1, D], likewise
    targets: Tensor  # [T]
    drawn: Drawn
    where: Tensor  # [T], rows of e that hold the targets
    drawn_where: Drawn  # rows of e that hold the negatives
    head: Head
    bias: Tensor | None  # [V + 1]
    wide: torch.dtype  # of losses and gradients
    grad_h: Tensor | None  # [T, D]
    grad_e: Tensor | None  # [V + 1, D]
    budget: int

    def gather(self) -> Tensor:
        n, d = self.h.shape
        count = self.drawn.count
        losses = []
        rows = max(1, min(n, (self.budget if count > 1 else 8 * self.budget) // (4 * (count + 1) * d)))
        for first in range(0, n, rows):
            last = min(first + rows, n)
            h, target, items = self.h[first:last], self.targets[first:last], self.drawn.at(first, last)
            plus_at, minus_at = self.where[first:last], self.drawn_where.at(first, last).reshape(-1)
            plus, minus = (
                self.e.index_select(0, plus_at),
                self.e.index_select(0, minus_at),
            )  # [R, D], [R N, D]
            positive = torch.linalg.vecdot(h, plus)  # [R]
            if count == 1:
                negative = torch.linalg.vecdot(h, minus)[:, None]  # [R, 1]
            else:
                negative = torch.bmm(minus.view(-1, count, d), h[:, :, None])[:, :, 0]  # [R, N]
            loss, d_plus, d_minus = self._head(positive, negative, target, items)
            losses.append(loss)
            if self.grad_h is not None:
                if count == 1:
                    part = torch.mul(minus, d_minus, out=self.grad_h[first:last])
                else:
                    part = self.grad_h[first:last]
                    part.copy_(torch.bmm(d_minus[:, None], minus.view(-1, count, d))[:, 0])
                part.addcmul_(plus, d_plus[:, None])
            if self.grad_e is not None:
                # The gathered vectors are not needed any more: their room takes the gradients.
                torch.mul(h[:, None], d_minus[:, :, None], out=minus.view(-1, count, d))
                self.grad_e.index_add_(0, minus_at, minus.to(self.wide))
                torch.mul(h, d_plus[:, None], out=plus)
                self.grad_e.index_add_(0, plus_at, plus.to(self.wide))
        return torch.stack(losses).sum()

    def dense(self) -> Tensor:
        n = len(self.h)
        rows = max(64, self.budget // (4 * max(len(self.e), self.drawn.count)))
        scores = self.h.new_empty(min(rows, n), len(self.e))
        losses = []
        for first in range(0, n, rows):
            last = min(first + rows, n)
            h, target, items = self.h[first:last], self.targets[first:last, None], self.drawn.at(first, last)
            s = torch.mm(h, self.e.T, out=scores[: last - first])  # [R, V + 1]
            positive, negative = s.gather(1, target)[:, 0], s.gather(1, items)  # [R], [R, N]
            loss, d_plus, d_minus = self._head(positive, negative, target[:, 0], items)
            losses.append(loss)
            if self.grad_h is None and self.grad_e is None:
                continue
            g = s.zero_().scatter_add_(1, items, d_minus).scatter_add_(1, target, d_plus[:, None])
            if self.grad_h is not None:
                _set_product(self.grad_h[first:last], g, self.e)
            if self.grad_e is not None:
                _add_product(self.grad_e, g.T, h)
        return torch.stack(losses).sum()

    def shared(self) -> Tensor:
        rows = max(64, self.budget // (4 * self.drawn.count))
        plus = self.e.index_select(0, self.where)  # [T, D]
        positives = torch.linalg.vecdot(self.h, plus)
        slopes = torch.empty_like(positives)  # [T]
        losses = []
        pools = self.drawn_where.items.view(-1, self.drawn.count)  # [S, N]
        for first, last, which in self.drawn.runs(len(self.h), rows):
            h, target, items = self.h[first:last], self.targets[first:last], self.drawn.at(first, last)
            minus = self.e.index_select(0, pools[which])  # [N, D]
            loss, d_plus, d_minus = self._head(positives[first:last], h @ minus.T, target, items)
            losses.append(loss)
            slopes[first:last] = d_plus
            if self.grad_h is not None:
                _set_product(self.grad_h[first:last], d_minus, minus)
            if self.grad_e is not None:
                self.grad_e.index_add_(0, pools[which], (d_minus.T @ h).to(self.wide))
        if self.grad_h is not None:
            self.grad_h.addcmul_(plus, slopes[:, None])
        if self.grad_e is not None:
            self.grad_e.index_add_(0, self.where, torch.mul(self.h, slopes[:, None], out=plus).to(self.wide))
        return torch.stack(losses).sum()

    def _head(
        self, positive: Tensor, negative: Tensor, target: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a chunk's share of the loss and its derivatives by the scores: a scalar, [R], [R, N]."""
        positive, negative = positive.to(self.wide), negative.to(self.wide)
        if self.bias is not None:
            negative = negative + self.bias[items]
        negative = negative.masked_fill_(items == target[:, None], -torch.inf)
        if self.grad_h is None and self.grad_e is None:
            return self.head(positive, negative).sum() / len(self.h), positive, negative
        with torch.enable_grad():
            positive, negative = positive.detach().requires_grad_(), negative.detach().requires_grad_()
            loss = self.head(positive, negative).sum() / len(self.h)
        d_plus, d_minus = torch.autograd.grad(loss, (positive, negative))
        return loss.detach(), d_plus.to(self.h.dtype), d_minus.to(self.h.dtype)


def _set_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        torch.mm(a, b, out=total)
    else:
        total.copy_(a @ b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total.add_(a @ b)
