"""The HSTU layer: projection, pointwise attention and a gate, not attention and feed-forward layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.nn.dropout import Dropout
from ensuite.nn.pointwise import Plan, PointwiseAttention


class Projected(NamedTuple):
    """Gate [..., H * dv], value [..., H, dv], query and key [..., H, dqk] of positions."""

    gate: Tensor
    value: Tensor
    query: Tensor
    key: Tensor


class HSTUBlock(nn.Module):
    """U, V, Q, K = SiLU(W Norm(X)); A = attention(Q, K, V); Y = W'(Norm(A) * U) + X (Zhai et al. 2024,
    equations 1-3).

    Parameters
    ----------
    dim, heads, dim_qk, dim_v
        Width D of the layer; number of heads H; widths of a head's queries and values.
    attention
        How A is computed; its biases belong to this layer.
    dropout
        Share of the output layer's input set to zero.
    concat_ua
        The output layer reads [U, A, Norm(A) * U].
    affine_norm, group_norm, projection_bias
        Production layer: norms with weights; A normalised for each head apart; a bias in the projection.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_qk: int,
        dim_v: int,
        attention: PointwiseAttention,
        dropout: float = 0.0,
        *,
        concat_ua: bool = False,
        affine_norm: bool = False,
        group_norm: bool = False,
        projection_bias: bool = False,
    ):
        super().__init__()
        self.heads, self.dim_qk, self.dim_v, self.concat_ua = heads, dim_qk, dim_v, concat_ua
        self.attention = attention
        self.input_norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=affine_norm)
        self.project_in = nn.Linear(dim, 2 * heads * (dim_qk + dim_v), bias=projection_bias)
        nn.init.normal_(self.project_in.weight, std=0.02)
        width = heads * dim_v
        self.output_norm = nn.LayerNorm(
            dim_v if group_norm else width, eps=1e-6, elementwise_affine=affine_norm
        )
        self.group_norm = group_norm
        self.dropout = Dropout(dropout)
        self.project_out = nn.Linear(3 * width if concat_ua else width, dim)
        nn.init.xavier_uniform_(self.project_out.weight)

    def project(self, x: Tensor) -> Projected:
        """Compute gate, value, query and key of positions [..., D], each from itself alone."""
        v, qk = self.heads * self.dim_v, self.heads * self.dim_qk
        gate, value, query, key = F.silu(self.project_in(self.input_norm(x))).split([v, v, qk, qk], -1)
        value, query, key = (part.unflatten(-1, (self.heads, -1)) for part in (value, query, key))
        return Projected(gate, value, query, key)

    def finish(self, x: Tensor, gate: Tensor, attended: Tensor) -> Tensor:
        """Gate what was attended to, [..., H, dv], and add it to the layer's input [..., D]."""
        normed = self.output_norm(attended if self.group_norm else attended.flatten(-2))
        gated = (normed.flatten(-2) if self.group_norm else normed) * gate  # [..., H * dv]
        if self.concat_ua:
            gated = torch.cat([gate, attended.flatten(-2), gated], -1)
        return x + self.project_out(self.dropout(gated))

    def ragged(self, x: Tensor, plan: Plan) -> Tensor:
        """Update concatenated tokens [T, D], each seeing those before it in its own sequence."""
        p = self.project(x)
        return self.finish(x, p.gate, self.attention.ragged(p.query, p.key, p.value, plan))

    def dense(self, x: Tensor, visible: Tensor, offsets: Tensor, buckets: Tensor | None = None) -> Tensor:
        """Update padded sequences [B, L, D]; see `PointwiseAttention.dense` for the other arguments."""
        p = self.project(x)
        attended = self.attention.dense(p.query, p.key, p.value, visible, offsets, buckets)
        return self.finish(x, p.gate, attended)
