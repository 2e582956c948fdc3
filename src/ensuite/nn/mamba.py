"""The Mamba block (Gu & Dao 2023, https://arxiv.org/abs/2312.00752, figure 3): a short convolution, then a
selective state space, then a gate."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.nn.causal_convolution import causal_convolution
from ensuite.nn.selective_scan import scan_last, selective_scan


class MambaState(NamedTuple):
    """What a Mamba block needs of the positions that it has read."""

    window: Tensor  # [B, d_conv - 1, E], the last inputs of the convolution
    hidden: Tensor  # [B, E, N]


class Mamba(nn.Module):
    """Map [B, L, D] to [B, L, D]; position i sees positions 0..i, so padding on the right needs no mask.

    Parameters
    ----------
    dim
        Width D.
    d_state
        Numbers N in the state of a channel.
    d_conv
        Positions that the convolution sees.
    expand
        The inner width is E = expand * dim.
    """

    def __init__(self, dim: int, d_state: int, d_conv: int, expand: int):
        super().__init__()
        inner = expand * dim
        self.inner, self.d_state, self.rank = inner, d_state, math.ceil(dim / 16)
        self.input = nn.Linear(dim, 2 * inner, bias=False)  # what is read, and its gate
        bound = d_conv**-0.5
        self.conv_weight = nn.Parameter(torch.empty(inner, d_conv).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))
        self.select = nn.Linear(inner, self.rank + 2 * d_state, bias=False)  # steps (low rank), B, C
        self.step_size = nn.Linear(self.rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))  # [E, N]
        self.skip = nn.Parameter(torch.ones(inner))
        self.output = nn.Linear(inner, dim, bias=False)
        self.reset_step_size()

    @torch.no_grad()
    def reset_step_size(self) -> None:
        """Let the steps begin between 0.001 and 0.1, evenly on the log scale (section 3.6 of the paper)."""
        nn.init.uniform_(self.step_size.weight, -(self.rank**-0.5), self.rank**-0.5)
        dt = torch.exp(torch.rand(self.inner) * math.log(100) + math.log(0.001)).clamp(min=1e-4)
        self.step_size.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """Read all positions of ``x`` [B, L, D]: [B, L, D]."""
        u, gate = self.input(x).chunk(2, -1)  # [B, L, E]
        u = self._convolve(u)
        dt, b, c = self._steps(u, self.select.weight, (self.d_state, self.d_state))
        y, _ = selective_scan(u, dt, self._decay(), b, c, want_state=False)
        return self._leave(y, u, gate)

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the output at position ``lengths`` - 1 of ``x`` [B, L, D], and nothing else: [B, D]."""
        weight, gate_weight = self.input.weight.chunk(2)
        row, at = torch.arange(x.shape[0], device=x.device), lengths - 1
        u = self._convolve(F.linear(x, weight))  # [B, L, E]
        dt, b = self._steps(u, self.select.weight[: -self.d_state], (self.d_state,))
        newest = u[row, at]  # [B, E]
        c = F.linear(newest, self.select.weight[-self.d_state :])  # [B, N]
        y = scan_last(u, dt * _mask(lengths, x)[..., None], self._decay(), b, c)
        return self._leave(y, newest, F.linear(x[row, at], gate_weight))

    def read(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, MambaState]:
        """Return the outputs [B, L, D], and the state after position ``lengths`` - 1 to go on from."""
        u, gate = self.input(x).chunk(2, -1)
        width = self.conv_weight.shape[1] - 1
        index = lengths[:, None] + torch.arange(width, device=x.device)  # into u with `width` zeros before it
        window = F.pad(u, (0, 0, width, 0)).gather(1, index[..., None].expand(-1, -1, self.inner))
        u = self._convolve(u)
        dt, b, c = self._steps(u, self.select.weight, (self.d_state, self.d_state))
        dt = dt * _mask(lengths, x)[..., None]  # a step of 0 leaves the state as it is
        y, hidden = selective_scan(u, dt, self._decay(), b, c)
        assert hidden is not None
        return self._leave(y, u, gate), MambaState(window, hidden)

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Read one more position, ``x`` [B, D]: its output [B, D] and the new state."""
        u, gate = self.input(x).chunk(2, -1)  # [B, E]
        seen = torch.cat([state.window, u[:, None]], 1)  # [B, d_conv, E]
        u = F.silu(torch.einsum("bke,ek->be", seen, self.conv_weight) + self.conv_bias)
        dt, b, c = self._steps(u, self.select.weight, (self.d_state, self.d_state))
        hidden = torch.exp(dt[..., None] * self._decay()) * state.hidden + (dt * u)[..., None] * b[:, None]
        y = (hidden @ c[..., None])[..., 0].to(u.dtype)
        return self._leave(y, u, gate), MambaState(seen[:, 1:], hidden)

    def _convolve(self, u: Tensor) -> Tensor:
        return F.silu(causal_convolution(u, self.conv_weight, self.conv_bias))

    def _steps(self, u: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return what the input selects: step sizes [..., E], then B and C, [..., N], as far as asked."""
        rank, *rest = F.linear(u, weight).split((self.rank, *sizes), -1)
        return F.softplus(self.step_size(rank)), *rest

    def _decay(self) -> Tensor:
        return -self.log_decay.exp()

    def _leave(self, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        return self.output((y + u * self.skip) * F.silu(gate))


def _mask(lengths: Tensor, x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, L]
