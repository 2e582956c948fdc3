"""Multi-head self-attention over padded sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.nn.dropout import dropout

QUERY_BLOCK = 64  # queries that attend at a time on a CPU; measured: 48 to 128 differ by a few per cent


class SelfAttention(nn.Module):
    """Softmax self-attention (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    dim, heads
        Width D and number of heads H; H must divide D.
    dropout
        Share of attention weights set to zero in training.
    causal
        Position i sees positions 0..i. With padding on the right no padding mask is needed then.
    project_output
        Whether a linear layer follows the concatenated heads (SASRec's released code has none).
    bias
        Whether queries, keys and values have a bias.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        *,
        causal: bool,
        project_output: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} does not divide dim = {dim}")
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.output = nn.Linear(dim, dim) if project_output else nn.Identity()

    def forward(self, query: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from ``query`` [B, Q, D] to ``memory`` [B, L, D] (default: the query itself): [B, Q, D].

        ``mask`` [B, L] or [B, Q, L] bool is True where a position may be seen: needed without ``causal``, and
        whenever the queries are not the whole sequence.
        """
        memory = query if memory is None else memory
        if query.shape[1] == 1 and memory.shape[1] > 1 and self.heads < 2 * query.shape[2]:
            return self.output(self._attend_once(query, memory, mask))
        q = self._split(self.query(query))  # [B, H, Q, D/H]
        k, v = (self._split(part) for part in self.key_value(memory).chunk(2, -1))  # [B, H, L, D/H]
        if mask is not None:
            mask = mask[:, None, None] if mask.dim() == 2 else mask[:, None]  # [B, 1, 1 or Q, L]
        rate, causal = self.dropout if self.training else 0.0, self.causal and mask is None
        if rate and q.device.type == "cpu":
            attended = _attend_causally(q, k, v, rate) if causal else _attend_masked(q, k, v, mask, rate)
        else:
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=rate, is_causal=causal
            )
        return self.output(attended.transpose(1, 2).flatten(2))  # [B, Q, D]

    def _attend_once(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from a single position, [B, 1, D], without projecting the whole memory.

        q · (K x + b) = (K^T q) · x + q · b, and the weighted mean of V x + c is V applied to the mean of x,
        plus c.
        """
        heads, width = self.heads, query.shape[2] // self.heads
        weights = self.key_value.weight.chunk(2)
        key, value = (part.unflatten(0, (heads, width)) for part in weights)  # [H, D/H, D]
        q = self.query(query).view(-1, heads, width)  # [B, H, D/H]
        inward = torch.einsum("bhw,hwd->bhd", q, key) * width**-0.5  # [B, H, D]
        scores = inward @ memory.mT  # [B, H, L]
        if mask is not None:
            scores = scores.masked_fill(~(mask[:, None] if mask.dim() == 2 else mask), float("-inf"))
        rate = self.dropout if self.training else 0.0
        kept = dropout(scores.softmax(-1), rate, self.training)
        mean = kept @ memory  # [B, H, D]
        attended = torch.einsum("bhd,hwd->bhw", mean, value)
        if self.key_value.bias is not None:
            value_bias = self.key_value.bias.chunk(2)[1]  # a key's bias moves all scores of a head alike
            share = (
                kept.sum(-1, keepdim=True) if rate else 1.0
            )  # what dropout leaves of the weights, 1 on average
            attended = attended + share * value_bias.view(heads, width)
        return attended.flatten(1)[:, None]  # [B, 1, D]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend_causally(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Attend as the fused kernel does, block of queries by block, without the keys that none of it sees.

    On a CPU the kernel has no dropout, and its fallback is four times slower than this.
    """
    scale, length = q.shape[-1] ** -0.5, q.shape[2]
    flat_q, flat_k, flat_v = (x.flatten(0, 1) for x in (q, k, v))  # [B * H, L, D/H]
    bias = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)  # [L, L]
    blocks = []
    for first in range(0, length, QUERY_BLOCK):
        last = min(first + QUERY_BLOCK, length)
        scores = torch.baddbmm(
            bias[first:last, :last], flat_q[:, first:last], flat_k[:, :last].mT, alpha=scale
        )  # [B * H, block, last]
        blocks.append(dropout(scores.softmax(-1), rate, rate > 0) @ flat_v[:, :last])
    return torch.cat(blocks, 1).view_as(q)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """Attend to what ``mask`` allows, with dropout on the weights (see `_attend_causally`)."""
    scores = q.shape[-1] ** -0.5 * q @ k.mT  # [B, H, Q, L]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return dropout(scores.softmax(-1), rate, True) @ v


def last_positions(x: Tensor, lengths: Tensor) -> Tensor:
    """Return each row's last real position: [B, L, D] and [B] give [B, 1, D]."""
    return x[torch.arange(x.shape[0], device=x.device), lengths - 1][:, None]
