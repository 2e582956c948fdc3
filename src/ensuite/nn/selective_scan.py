"""The selective scan of Mamba (Gu & Dao 2023, https://arxiv.org/abs/2312.00752, section 3.2), in plain
PyTorch.

For each of E channels a state of N numbers decays at a rate that the input chooses, and is read by the input:

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t · h_t

What is dear is the tensor [B, L, E, N] of all states. No form here keeps it: both work through it in pieces
that fit in a cache, and compute it again, piece by piece, for the gradient.

`selective_scan`
    All positions. Within a chunk of time everything but the recurrence is done at once for all positions; the
    recurrence itself is one fused operation a position, or, where a position's states are too few to fill a
    GPU, an associative scan over the chunk (Hillis & Steele). Only the states at the chunks' beginnings are
    kept. On CUDA the kernel of `mamba-ssm` is used where it is installed (not tested by us).
`scan_last`
    The last position only, which needs no recurrence: y = sum_t dt_t u_t sum_n C_n B_tn exp(A_n S_t), where
    S_t is the sum of dt after t. What serving and training on prefixes want.
`sequential_scan`
    The recurrence as written above, position by position: what the others are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ensuite.exporting import is_exporting

CHUNK = 16  # positions, at least
CPU_ELEMENTS, GPU_ELEMENTS = 1 << 18, 1 << 25  # of a working tensor: 1 MB (measured), 128 MB
FEW = 1 << 18  # states of a position below which a GPU waits for its launches


def selective_scan(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    want_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Scan all positions; return y [B, L, E] and, if wanted, the state after the last one [B, E, N].

    A position with dt = 0 leaves the state as it is: give padding on the right that step, and the final state
    is that after the last real position.

    Parameters
    ----------
    u, dt
        Input and step sizes, [B, L, E]; dt at least 0.
    a
        Decay rates, [E, N], below 0.
    b, c
        How the input enters the state and how the state is read, [B, L, N].
    state
        State before the first position, [B, E, N]; zero when None.
    """
    scan = _exported_scan if is_exporting() else _selective_scan
    return scan(u, dt, a, b, c, state, want_state)


@torch.compiler.disable
def _selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None, want_state: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        u, dt, a, b, c = (_at_least_float32(x) for x in (u, dt, a, b, c))
        if u.is_cuda and state is None and not want_state and (kernel := _kernel()) is not None:
            return kernel(u.mT, dt.mT, a, b.mT, c.mT).mT.to(dtype), None  # its state has no gradient
        if state is None:
            state = u.new_zeros(len(u), *a.shape)
        y, last = _Scan.apply(u, dt, a, b, c, _at_least_float32(state))
    return y.to(dtype), last if want_state else None


def scan_last(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return y at the last position with dt > 0, [B, E], from a state of zero.

    As `selective_scan`, but for ``c``, [B, N]: that of the last position. Padding has dt = 0 in all channels;
    what it brings in, 0, is not computed, and has no gradient: mask its dt.
    """
    if is_exporting():
        after = dt.flip(1).cumsum(1).flip(1) - dt  # S: [B, L, E]
        g = b * c[:, None]  # [B, L, N]
        read = sum(g[..., n, None] * torch.exp(after * a[:, n]) for n in range(a.shape[1]))
        return (dt * u * read).sum(1)
    return _scan_last(u, dt, a, b, c)


@torch.compiler.disable
def _scan_last(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        u, dt, a, b, c = (_at_least_float32(x) for x in (u, dt, a, b, c))
        if u.is_cuda and _kernel() is not None:
            return selective_scan(u, dt, a, b, c[:, None].expand_as(b), want_state=False)[0][:, -1].to(dtype)
        read = _Decayed.apply(dt, a, b * c[:, None])  # [B, L, E]
        return (dt * u * read).sum(1).to(dtype)


def _exported_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None, want_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Do what `sequential_scan` does, as the loop operator of an exported graph."""
    from torch._higher_order_ops.scan import scan

    def step(h: Tensor, at: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u, dt, b, c = at
        h = torch.exp(dt[..., None] * a) * h + (dt * u)[..., None] * b[:, None]
        return h, (h @ c[..., None])[..., 0]

    start = u.new_zeros(u.shape[0], *a.shape) if state is None else state
    last, y = scan(step, start, tuple(x.transpose(0, 1) for x in (u, dt, b, c)))
    return y.transpose(0, 1), last if want_state else None


def sequential_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `selective_scan` does, one position after another."""
    h = u.new_zeros(len(u), *a.shape) if state is None else state  # [B, E, N]
    y = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        y.append((h @ c[:, t, :, None])[..., 0])
    return torch.stack(y, 1), h


class _Scan(torch.autograd.Function):
    """Blocks of rows, and within them chunks of time one after the other; tensors inside are [T, R, E, N]."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows, time = _plan(u, a)
        chunks = -(-u.shape[1] // time)
        starts = u.new_empty(len(u), chunks, *a.shape)  # states before each chunk: [B, chunks, E, N]
        y, last = torch.empty_like(u), torch.empty_like(state)
        room = _room(2, time * rows, a)
        for r in _slices(len(u), rows):
            h = state[r]
            for i, t in enumerate(_slices(u.shape[1], time)):
                starts[r, i] = h
                decay, hidden = _states(u[r, t], dt[r, t], a, b[r, t], h, room)
                h = hidden[-1].clone()
                read = torch.mul(hidden, c[r, t].transpose(0, 1)[:, :, None], out=decay)
                y[r, t] = read.sum(-1).transpose(0, 1)
            last[r] = h
        ctx.save_for_backward(u, dt, a, b, c, starts)
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, starts = ctx.saved_tensors
        grad_y, grad_last = grads
        rows, time = _plan(u, a)
        grad_u, grad_dt, grad_b, grad_c = (torch.empty_like(x) for x in (u, dt, b, c))
        grad_a, grad_state = torch.zeros_like(a), torch.empty_like(grad_last)
        room = _room(4, time * rows, a)
        for r in _slices(len(u), rows):
            carry = grad_last[r]  # from the chunk after this one, to its last state
            for i, t in reversed(list(enumerate(_slices(u.shape[1], time)))):
                us, dts, bs, cs, gs = (x[r, t].transpose(0, 1) for x in (u, dt, b, c, grad_y))  # [T, R, ..]
                start = starts[r, i]
                decay, hidden = _states(u[r, t], dt[r, t], a, b[r, t], start, room)
                g, spare = (x[: decay.numel()].view_as(decay) for x in room[2:])
                torch.mul(gs[..., None], cs[:, :, None], out=g)
                _recur_back(decay, g, carry)  # the gradient by each state
                carry = decay[0] * g[0]
                grad_c[r, t] = (gs[:, :, None] @ hidden)[:, :, 0].transpose(0, 1)
                grad_b[r, t] = ((dts * us)[:, :, None] @ g)[:, :, 0].transpose(0, 1)
                entered = torch.mul(g, bs[:, :, None], out=spare).sum(-1)  # by dt u: [T, R, E]
                # By dt A: gradient of the state, times decay, times the state before.
                g.mul_(decay)
                g[1:].mul_(hidden[:-1])
                g[0].mul_(start)
                grad_u[r, t] = (entered * dts).transpose(0, 1)
                decayed = torch.mul(g, a, out=spare).sum(-1)  # [T, R, E]
                grad_dt[r, t] = (entered * us + decayed).transpose(0, 1)
                grad_a += g.mul_(dts[..., None]).sum((0, 1))
            grad_state[r] = carry
        return grad_u, grad_dt, grad_a, grad_b, grad_c, grad_state


def _states(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, start: Tensor, room: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return decays and states of a chunk after the state ``start`` [R, E, N]: [T, R, E, N] each."""
    u, dt, b = (x.transpose(0, 1) for x in (u, dt, b))  # [T, R, ...]
    shape = (*u.shape, a.shape[1])
    decay, hidden = (x[: u.numel() * a.shape[1]].view(shape) for x in room[:2])
    torch.mul(dt[..., None], a, out=decay).exp_()
    torch.mul((dt * u)[..., None], b[:, :, None], out=hidden)
    _recur(decay, hidden, start)
    return decay, hidden


def _recur(decay: Tensor, x: Tensor, start: Tensor) -> None:
    """Turn ``x`` [T, ...] into x_t + decay_t x_{t-1}, in place, with ``start`` before the first."""
    x[0].addcmul_(decay[0], start)
    if _waits_for_launches(x[0]):
        return associate(decay, x)
    for t in range(1, len(x)):
        x[t].addcmul_(decay[t], x[t - 1])


def _recur_back(decay: Tensor, g: Tensor, carry: Tensor) -> None:
    """Turn ``g`` [T, ...] into g_t + decay_{t+1} g_{t+1}, in place, with ``carry`` added to the last."""
    g[-1].add_(carry)
    if _waits_for_launches(g[0]):
        backwards = g.flip(0)
        associate(decay.roll(-1, 0).flip(0), backwards)
        g.copy_(backwards.flip(0))
        return
    for t in range(len(g) - 2, -1, -1):
        g[t].addcmul_(decay[t + 1], g[t + 1])


def _waits_for_launches(x: Tensor) -> bool:
    return x.is_cuda and x.numel() < FEW


def associate(decay: Tensor, x: Tensor) -> None:
    """Turn ``x`` [T, ...] into x_t + decay_t x_{t-1}, in place, in log2 T steps; decay_0 is not read.

    (a, x) after (b, y) is (a b, x + a y): each step joins every position with the one ``by`` before it.
    """
    decay, by = decay.clone(), 1
    while by < len(x):
        x[by:] += decay[by:] * x[:-by]  # the product is computed before anything is written
        decay[by:] = decay[by:] * decay[:-by]
        by *= 2


class _Decayed(torch.autograd.Function):
    """read_t = sum_n g_tn exp(A_n S_t), where S_t is the sum of dt after t: [B, L, E]; 0 where dt_t is 0.

    Both sums over time run by a loop over positions: PyTorch's cumulative sum cannot run backwards, and is
    slow on a CPU. The rest is done for some of the M positions that are no padding at a time, in tensors
    [m, N, E]: with the longer axis last, a pass over one takes half as long as with the states last.
    """

    @staticmethod
    def forward(ctx: Any, dt: Tensor, a: Tensor, g: Tensor) -> Tensor:
        after = torch.zeros_like(dt, memory_format=torch.contiguous_format)  # S: [B, L, E]
        for t in range(dt.shape[1] - 2, -1, -1):
            torch.add(after[:, t + 1], dt[:, t + 1], out=after[:, t])
        events = dt.any(-1).flatten().nonzero()[:, 0]  # [M]
        s, g = (x.flatten(0, 1)[events] for x in (after, g))  # [M, E], [M, N]
        a = a.T.contiguous()  # [N, E]
        ctx.save_for_backward(s, a, g, events)
        read = torch.empty_like(s)
        (room,) = _room(1, _tokens(s, a), a)
        for m in _slices(len(s), _tokens(s, a)):
            torch.bmm(g[m, None], _decays(s[m], a, room), out=read[m, None])
        return torch.zeros_like(after).flatten(0, 1).index_copy_(0, events, read).view_as(after)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, a, g, events = ctx.saved_tensors
        shape = grads[0].shape[:2]  # B, L
        by = grads[0].flatten(0, 1)[events]  # [M, E]
        grad_s, grad_a, grad_g = torch.empty_like(s), torch.zeros_like(a), torch.empty_like(g)
        room, spare = _room(2, _tokens(s, a), a)
        for m in _slices(len(s), _tokens(s, a)):
            reached = _decays(s[m], a, room).mul_(by[m, None])  # [m, N, E]
            grad_g[m] = reached.sum(-1)
            reached.mul_(g[m, :, None])
            product = spare[: reached.numel()].view_as(reached)
            grad_s[m] = torch.mul(reached, a, out=product).sum(1)
            grad_a += torch.mul(reached, s[m, None], out=product).sum(0)
        grad_after, grad_by_position = (
            x.new_zeros(*shape, x.shape[-1]).flatten(0, 1).index_copy_(0, events, x).view(*shape, -1)
            for x in (grad_s, grad_g)
        )
        grad_dt = torch.zeros_like(grad_after)  # a step is in the sums of all positions before it
        for t in range(1, shape[1]):
            torch.add(grad_dt[:, t - 1], grad_after[:, t - 1], out=grad_dt[:, t])
        return grad_dt, grad_a.T, grad_by_position


def _decays(s: Tensor, a: Tensor, room: Tensor) -> Tensor:
    out = room[: s.shape[0] * a.numel()].view(-1, *a.shape)
    return torch.mul(s[:, None], a, out=out).exp_()


def _elements(x: Tensor) -> int:
    return GPU_ELEMENTS if x.is_cuda else CPU_ELEMENTS


def _tokens(s: Tensor, a: Tensor) -> int:
    return max(1, min(s.shape[0], _elements(s) // a.numel()))


def _plan(u: Tensor, a: Tensor) -> tuple[int, int]:
    """Choose how many rows and positions make a piece of work."""
    rows = min(len(u), max(1, _elements(u) // (CHUNK * a.numel())))
    time = max(CHUNK, _elements(u) // (rows * a.numel()))
    return rows, min(time, u.shape[1])


def _room(n: int, tokens: int, a: Tensor) -> list[Tensor]:
    """Return ``n`` flat working tensors for ``tokens`` x E x N numbers, used again by every piece."""
    return [a.new_empty(tokens * a.numel()) for _ in range(n)]


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(at, min(at + size, n)) for at in range(0, n, size))


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@cache
def _kernel() -> Callable[..., Any] | None:
    """Return the kernel of `mamba-ssm`, or None where it is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # type: ignore[import-not-found]
    except ImportError:
        return None
    return selective_scan_fn
