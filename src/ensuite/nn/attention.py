"""Multi-head self-attention over padded sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.nn.dropout import dropout


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
    """

    def __init__(
        self, dim: int, heads: int, dropout: float = 0.0, *, causal: bool, project_output: bool = True
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads = {heads} does not divide dim = {dim}")
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
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
        rate = self.dropout if self.training else 0.0
        if rate and q.device.type == "cpu":
            attended = _attend_with_dropout(q, k, v, mask, self.causal and mask is None, rate)
        else:
            attended = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=rate, is_causal=self.causal and mask is None
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
        value_bias = self.key_value.bias.chunk(2)[1]  # a key's bias moves all scores of a head alike
        q = self.query(query).view(-1, heads, width)  # [B, H, D/H]
        inward = torch.einsum("bhw,hwd->bhd", q, key) * width**-0.5  # [B, H, D]
        scores = inward @ memory.mT  # [B, H, L]
        if mask is not None:
            scores = scores.masked_fill(~(mask[:, None] if mask.dim() == 2 else mask), float("-inf"))
        rate = self.dropout if self.training else 0.0
        kept = dropout(scores.softmax(-1), rate, self.training)
        mean = kept @ memory  # [B, H, D]
        attended = torch.einsum("bhd,hwd->bhw", mean, value)
        share = (
            kept.sum(-1, keepdim=True) if rate else 1.0
        )  # what dropout leaves of the weights, 1 on average
        return (attended + share * value_bias.view(heads, width)).flatten(1)[:, None]  # [B, 1, D]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rate: float
) -> Tensor:
    """Attend as the fused kernel does; on a CPU that one has no dropout, and its fallback is four times
    slower than this."""
    scale = q.shape[-1] ** -0.5
    if causal:
        bias = torch.full((q.shape[-2], k.shape[-2]), float("-inf"), dtype=q.dtype).triu(1)  # [L, L]
        flat_q, flat_k = q.flatten(0, 1), k.flatten(0, 1)
        scores = torch.baddbmm(bias, flat_q, flat_k.mT, alpha=scale).view(*q.shape[:-1], -1)
    else:
        scores = scale * q @ k.mT  # [B, H, Q, L]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
    return dropout(scores.softmax(-1), rate, True) @ v


def last_positions(x: Tensor, lengths: Tensor) -> Tensor:
    """Return each row's last real position: [B, L, D] and [B] give [B, 1, D]."""
    return x[torch.arange(len(x), device=x.device), lengths - 1][:, None]
