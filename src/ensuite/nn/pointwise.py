"""Pointwise aggregated attention (HSTU, section 3.2): SiLU(q·k + bias) / N in place of a softmax, with
relative biases.

Two computations of the same numbers: `dense`, for any set of queries, keys and masks, reads as the paper does
and is the reference; `ragged`, for causal self-attention over concatenated sequences, computes little more
than the pairs of real positions that see each other (less than half of B x L x L), in pieces that stay in the
processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ensuite.nn.time_bias import BUCKETS, histogram, lookup, time_buckets

PIECE = 1 << 18  # scores computed at once: one megabyte of float32
ROWS = 64  # queries computed at once: row block r needs keys 0..64(r + 1) only


@dataclass(frozen=True)
class Piece:
    """Some sequences of a ragged batch, processed as a padded [G, W] block."""

    shape: tuple[int, int]
    source: Tensor  # [G * W] int64, token rows to read; what is padding reads the last token
    target: Tensor  # [G * W] int64, token rows to write; what is padding writes to a row after the last token
    real: Tensor | None  # [G, 1, W, 1] bool; None when nothing is padding
    buckets: list[Tensor]  # of each block of ROWS queries, [G * R * K] int32; empty without times


@dataclass(frozen=True)
class Plan:
    """How a ragged batch is cut into pieces; made once, read by every layer, forward and backward."""

    pieces: list[Piece]
    tokens: int
    longest: int


def plan_ragged(
    offsets: Tensor, times: Tensor | None = None, request_times: Tensor | None = None, heads: int = 1
) -> Plan:
    """Cut T concatenated tokens into pieces of about `PIECE` scores.

    Parameters
    ----------
    offsets
        Sequence b is tokens ``offsets[b]:offsets[b + 1]``: [B + 1] int64, from 0 to T.
    times, request_times
        Times of keys and of queries in seconds: [T] int64; without them no time buckets are made.
    """
    bounds = offsets.tolist()
    tokens, starts, lengths = bounds[-1], bounds[:-1], [b - a for a, b in pairwise(bounds)]
    if times is not None and request_times is not None:  # a row for padding, of any value
        times, request_times = F.pad(times, (0, 1)), F.pad(request_times, (0, 1))
    pieces, at = [], 0
    while at < len(starts):
        width, n = lengths[at], 1
        while at + n < len(starts) and heads * (n + 1) * max(width, lengths[at + n]) ** 2 <= PIECE:
            width = max(width, lengths[at + n])
            n += 1
        if width:
            some = slice(at, at + n)
            pieces.append(_piece(starts[some], lengths[some], width, offsets, tokens, times, request_times))
        at += n
    return Plan(pieces, tokens, max(lengths, default=0))


def _piece(
    starts: list[int], lengths: list[int], width: int, offsets: Tensor, tokens: int,
    times: Tensor | None, request_times: Tensor | None,
) -> Piece:  # fmt: skip
    start, length = (torch.tensor(x, device=offsets.device)[:, None] for x in (starts, lengths))  # [G, 1]
    step = torch.arange(width, device=offsets.device)
    index = torch.where(step < length, start + step, tokens)  # [G, W]
    buckets: list[Tensor] = []
    if times is not None and request_times is not None:
        key, query = times[index], request_times[index]  # [G, W]
        for first in range(0, width, ROWS):
            last = min(first + ROWS, width)
            buckets.append(time_buckets(query[:, first:last], key[:, :last]).flatten())
    target = index.flatten()
    real = None if min(lengths) == width else (step < length)[:, None, :, None]
    return Piece((len(starts), width), target.clamp(max=tokens - 1), target, real, buckets)


class _RaggedAttention(torch.autograd.Function):
    """Causal attention over the pieces of a plan; backward has the scores and makes the weights again."""

    @staticmethod
    def forward(ctx, q, k, v, position, time, plan: Plan, softmax: bool, divisor: float | None):  # type: ignore[no-untyped-def, override]
        # q, k [T, H, dqk], v [T, H, dv], position [N] or None, time [129] or None; divisor None = keys seen
        tokens, heads, dim_v = v.shape
        out = v.new_empty(tokens + 1, heads, dim_v)
        by_offset = None if position is None else _toeplitz(position, plan.longest)  # [W, W]
        saved: list[Tensor] = []
        for piece in plan.pieces:
            qs, ks, vs = (_load(x, piece) for x in (q, k, v))  # [G * H, W, d]
            parts = []
            for number, (first, last) in enumerate(_row_blocks(piece)):
                scores = torch.bmm(qs[:, first:last], ks[:, :last].mT)  # [G * H, R, K]
                bias = _bias(piece, number, first, last, by_offset, time)
                if bias is not None:
                    scores.view(-1, heads, last - first, last).add_(bias)
                weights = _weights(scores, first, softmax)
                saved.append(weights if softmax else scores)
                parts.append(torch.bmm(weights, vs[:, :last]))
            attended = torch.cat(parts, 1) * _row_scale(piece, softmax, divisor, v)  # [G * H, W, dv]
            out.index_copy_(0, piece.target, _unload(attended, piece, heads))
        ctx.save_for_backward(q, k, v, *saved)
        ctx.plan, ctx.softmax, ctx.divisor = plan, softmax, divisor
        ctx.sizes = tuple(None if table is None else len(table) for table in (position, time))
        return out[:tokens]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def, override]
        q, k, v, *saved = ctx.saved_tensors
        plan, softmax, heads = ctx.plan, ctx.softmax, v.shape[1]
        n_position, n_time = ctx.sizes
        dq, dk, dv = (x.new_empty(len(x) + 1, *x.shape[1:]) for x in (q, k, v))
        by_offset = _zeros(grad, plan.longest, plan.longest) if n_position else None
        by_bucket = _zeros(grad, n_time) if n_time else None
        at = 0
        for piece in plan.pieces:
            qs, ks, vs, gs = (_load(x, piece) for x in (q, k, v, grad))  # [G * H, W, d]
            gs = gs * _row_scale(piece, softmax, ctx.divisor, v)
            if piece.real is not None:
                gs = (gs.view(-1, heads, *gs.shape[1:]) * piece.real).view_as(gs)
            dks, dvs = torch.zeros_like(ks), torch.zeros_like(vs)
            dqs = []
            for number, (first, last) in enumerate(_row_blocks(piece)):
                kept, g = saved[at], gs[:, first:last]
                at += 1
                dweights = torch.bmm(g, vs[:, :last].mT)  # [G * H, R, K]
                if softmax:
                    weights = kept
                    dscores = torch._softmax_backward_data(dweights, kept, -1, kept.dtype)
                else:
                    weights = _weights(kept, first, softmax)
                    dscores = _cut(torch.ops.aten.silu_backward(dweights, kept), first)
                dvs[:, :last].baddbmm_(weights.mT, g)
                dks[:, :last].baddbmm_(dscores.mT, qs[:, first:last])
                dqs.append(torch.bmm(dscores, ks[:, :last]))
                dbias = dscores if heads == 1 else dscores.unflatten(0, (-1, heads)).sum(1)  # [G, R, K]
                if by_bucket is not None:
                    by_bucket += histogram(piece.buckets[number], dbias, n_time)
                if by_offset is not None:
                    by_offset[first:last, :last] += dbias.sum(0)
            for total, part in ((dq, torch.cat(dqs, 1)), (dk, dks), (dv, dvs)):
                total.index_copy_(0, piece.target, _unload(part, piece, heads))
        dposition = None if by_offset is None else histogram(_offsets(by_offset), by_offset, n_position)
        return dq[:-1], dk[:-1], dv[:-1], dposition, by_bucket, None, None, None


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """What sums over many pairs are kept in: float32 at least."""
    return like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))


def _row_blocks(piece: Piece) -> list[tuple[int, int]]:
    width = piece.shape[1]
    return [(first, min(first + ROWS, width)) for first in range(0, width, ROWS)]


def _load(x: Tensor, piece: Piece) -> Tensor:
    """Read a piece's tokens from [T, H, d]: [G * H, W, d]. Padding reads any token: only padding sees it."""
    groups, width = piece.shape
    heads, dim = x.shape[1:]
    block = x.index_select(0, piece.source)
    return block.view(groups, width, heads, dim).transpose(1, 2).reshape(groups * heads, width, dim)


def _unload(x: Tensor, piece: Piece, heads: int) -> Tensor:
    """[G * H, W, d] back to tokens: [G * W, H, d]."""
    groups, width = piece.shape
    return x.view(groups, heads, width, -1).transpose(1, 2).reshape(groups * width, heads, -1)


def _offsets(square: Tensor) -> Tensor:
    """Query minus key position, 0 for keys to come: [W, W] int32."""
    step = torch.arange(len(square), device=square.device, dtype=torch.int32)
    return (step[:, None] - step).clamp_(min=0)


def _toeplitz(position: Tensor, width: int) -> Tensor:
    return position[_offsets(position.new_empty(width, 0))]


def _bias(
    piece: Piece, number: int, first: int, last: int, by_offset: Tensor | None, time: Tensor | None
) -> Tensor | None:
    """Sum of the biases of one block: [G or 1, 1, R, K]."""
    offset = None if by_offset is None else by_offset[first:last, :last]
    if time is None:
        return None if offset is None else offset[None, None]
    bias = time.index_select(0, piece.buckets[number]).view(piece.shape[0], 1, last - first, last)
    return bias if offset is None else bias.add_(offset)


def _cut(x: Tensor, first: int) -> Tensor:
    """Set to zero, in place, what a query may not see: x [G, R, K] begins at query ``first``."""
    corner = x[:, :, first:]
    rows = corner.shape[1]
    corner.mul_(torch.ones(rows, rows, dtype=x.dtype, device=x.device).tril_())
    return x


def _weights(scores: Tensor, first: int, softmax: bool) -> Tensor:
    if not softmax:
        return _cut(F.silu(scores), first)
    rows = scores.shape[1]
    later = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
    scores[:, :, first:].masked_fill_(later, -torch.inf)
    return scores.softmax(-1)


def _row_scale(piece: Piece, softmax: bool, divisor: float | None, like: Tensor) -> Tensor | float:
    if softmax:
        return 1.0
    if divisor is not None:
        return 1.0 / divisor
    return 1.0 / torch.arange(1, piece.shape[1] + 1, dtype=like.dtype, device=like.device)[:, None]  # [W, 1]


class PointwiseAttention(nn.Module):
    """Attention whose weights are SiLU(q·k + bias) / N, with biases by offset and by time, shared by the
    heads.

    Parameters
    ----------
    span N: what the weights are divided by, and the number of offsets with a bias of their own.
    position_bias, time_bias Whether there is a bias for each offset (query minus key position), and for each
    bucket of the time between. activation softmax is the ablation: additive mask, no division. normalizer
    Divide by the constant ``span`` (released code) or by the number of keys that the query sees. scale
    Multiply q·k by 1 / sqrt(dqk) (production layer), not the bias.
    """

    def __init__(
        self,
        span: int,
        *,
        position_bias: bool = True,
        time_bias: bool = True,
        activation: Literal["silu", "softmax"] = "silu",
        normalizer: Literal["constant", "length"] = "constant",
        scale: bool = False,
    ):
        super().__init__()
        self.span, self.softmax, self.scale = span, activation == "softmax", scale
        self.divisor = float(span) if normalizer == "constant" else None
        self.position = nn.Parameter(torch.empty(span).normal_(0, 0.02)) if position_bias else None
        self.time = nn.Parameter(torch.empty(BUCKETS).normal_(0, 0.02)) if time_bias else None

    def ragged(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        """Attend causally within each sequence: q, k [T, H, dqk] and v [T, H, dv] give [T, H, dv]."""
        q = self._scaled(q)
        with torch.autocast(q.device.type, enabled=False):
            tables = (None if t is None else t.to(q.dtype) for t in (self.position, self.time))
            return _RaggedAttention.apply(q, k, v, *tables, plan, self.softmax, self.divisor)

    def dense(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, offsets: Tensor, buckets: Tensor | None = None
    ) -> Tensor:
        """Attend from any queries to any keys.

        Parameters
        ----------
        q, k, v
            [B, Q, H, dqk], [B, K, H, dqk], [B, K, H, dv].
        visible
            Which key a query may see: [B or 1, Q, K] bool.
        offsets
            Query minus key position: [B or 1, Q, K] int; read where visible only.
        buckets
            Time buckets, see `time_buckets`: [B, Q, K] int32; needed with the time bias.

        Returns
        -------
        Tensor
            [B, Q, H, dv].
        """
        scores = torch.einsum("bqhd,bkhd->bhqk", self._scaled(q), k)
        bias = self.bias(offsets, buckets)
        if bias is not None:
            scores = scores + bias[:, None].to(scores.dtype)
        seen = visible[:, None]  # [B or 1, 1, Q, K]
        if self.softmax:
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        else:
            # SiLU of a forbidden score is not zero: masked by multiplication, never by adding -inf
            divisor = self.divisor or seen.sum(-1, keepdim=True).clamp(min=1)
            weights = F.silu(scores) * seen / divisor
        return torch.einsum("bhqk,bkhd->bqhd", weights.to(v.dtype), v)

    def bias(self, offsets: Tensor, buckets: Tensor | None) -> Tensor | None:
        """Return the sum of both biases: [B or 1, Q, K], or None when there is neither."""
        bias = None
        if self.position is not None:
            bias = lookup(self.position, offsets.clamp(0, self.span - 1).int())
        if self.time is not None:
            if buckets is None:
                raise ValueError("the time bias needs the time buckets of queries and keys")
            by_time = lookup(self.time, buckets)
            bias = by_time if bias is None else bias + by_time
        return bias

    def _scaled(self, q: Tensor) -> Tensor:
        return q * q.shape[-1] ** -0.5 if self.scale else q
