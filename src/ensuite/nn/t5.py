"""Blocks of T5 (Raffel et al., JMLR 2020, arXiv:1910.10683): RMS norms before each layer, attention without
scaling or biases, learned biases for relative positions; with a cache in which many beams share what they
have in common.

A stack is an encoder (every position sees every real one), a decoder that also reads a memory, or a decoder
alone. In a search the keys and values of a user's history, be it the decoder's own prefix or the encoder's
output, are held once per user, whatever the number of beams: the beams are more queries against them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.nn.dropout import Dropout, dropout

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, [B, H, S, W] each (W the width of a head)."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a stack."""

    dim: int
    heads: int
    head_dim: int
    inner: int
    dropout: float
    buckets: int = 32
    """Buckets of relative positions."""
    furthest: int = 128
    """Distances from here on share a bucket."""


@dataclass(frozen=True)
class Cache:
    """What a decoder holds of what it has read: immutable, a step returns another one."""

    shared: Sequence[KeysValues]  # of each layer: the prefix that all beams of a user have in common
    lengths: Tensor  # [B], real positions of the prefix
    memory: Sequence[KeysValues]  # of each layer: the encoder's output; empty without one
    memory_bias: Tensor | None  # [B, 1, 1, S], -inf where it is padded
    own: Sequence[KeysValues] = ()  # of each layer [B, W, l, H, head_dim]: what each beam has read since


def relative_bucket(distance: Tensor, buckets: int, furthest: int, both_ways: bool) -> Tensor:
    """Return the bucket of each ``distance`` (position of the key minus that of the query).

    Near distances have a bucket of their own, far ones share them on a logarithmic scale; without
    ``both_ways`` all keys ahead of the query share bucket 0.
    """
    bucket = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        bucket = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    far = torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact) * (buckets - exact)
    return bucket + torch.where(distance < exact, distance, (exact + far.long()).clamp(max=buckets - 1))


class PositionBias(nn.Embedding):
    """A bias for each bucket and head; by its name it is spared from weight decay."""


class Attention(nn.Module):
    """Multi-head attention whose heads may be wider, together, than the input."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, inner = shape, shape.heads * shape.head_dim
        self.query = nn.Linear(shape.dim, inner, bias=False)
        self.key_value = nn.Linear(shape.dim, 2 * inner, bias=False)
        self.output = nn.Linear(inner, shape.dim, bias=False)
        nn.init.normal_(self.query.weight, std=(shape.dim * shape.head_dim) ** -0.5)
        nn.init.normal_(self.key_value.weight, std=shape.dim**-0.5)
        nn.init.normal_(self.output.weight, std=inner**-0.5)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """Project ``memory`` [B, S, D]."""
        key, value = self.key_value(memory).chunk(2, -1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, seen: KeysValues, bias: Tensor | None) -> Tensor:
        """Attend from ``x`` [B, Q, D]; ``bias`` is added to the scores [B, H, Q, S]."""
        scores = self._split(self.query(x)) @ seen[0].mT
        weights = (scores if bias is None else scores + bias).float().softmax(-1).to(x.dtype)
        attended = dropout(weights, self.shape.dropout, self.training) @ seen[1]
        return self.output(attended.transpose(1, 2).flatten(2))

    def read_beams(
        self, x: Tensor, shared: KeysValues, shared_bias: Tensor, own: KeysValues, own_bias: Tensor
    ) -> Tensor:
        """Attend from beams [B, W, D] to what they share and to what each has read alone, in one softmax."""
        q = self._split(self.query(x))  # [B, H, W, head_dim]
        common = q @ shared[0].mT + shared_bias  # [B, H, W, P]
        alone = torch.einsum("bhwd,bwlhd->bhwl", q, own[0]) + own_bias  # [B, H, W, l]
        weights = torch.cat([common, alone], -1).float().softmax(-1).to(x.dtype)
        split = common.shape[-1]
        attended = weights[..., :split] @ shared[1]
        attended = attended + torch.einsum("bhwl,bwlhd->bhwd", weights[..., split:], own[1])
        return self.output(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them, without biases."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.up = nn.Linear(shape.dim, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.dim, bias=False)
        self.dropout = Dropout(shape.dropout)
        nn.init.normal_(self.up.weight, std=shape.dim**-0.5)
        nn.init.normal_(self.down.weight, std=shape.inner**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.down(self.dropout(F.relu(self.up(x))))


class Layer(nn.Module):
    """Self-attention, attention to a memory where there is one, feed-forward: each x + f(norm(x))."""

    def __init__(self, shape: Shape, cross: bool):
        super().__init__()
        self.norm, self.attention = nn.RMSNorm(shape.dim, 1e-6), Attention(shape)
        self.cross_norm = nn.RMSNorm(shape.dim, 1e-6) if cross else None
        self.cross = Attention(shape) if cross else None
        self.inner_norm, self.inner = nn.RMSNorm(shape.dim, 1e-6), FeedForward(shape)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self, x: Tensor, bias: Tensor, memory: KeysValues | None, memory_bias: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """Update ``x`` [B, T, D]; also return its keys and values of the self-attention."""
        h = self.norm(x)
        seen = self.attention.keys_values(h)
        x = x + self.dropout(self.attention(h, seen, bias))
        return self._rest(x, memory, memory_bias), seen

    def read_beams(
        self,
        x: Tensor,
        shared: KeysValues,
        shared_bias: Tensor,
        own: KeysValues | None,
        own_bias: Tensor,
        memory: KeysValues | None,
        memory_bias: Tensor | None,
    ) -> tuple[Tensor, KeysValues]:
        """Update beams ``x`` [B, W, D] that continue ``own``; also return that with theirs added."""
        h = self.norm(x)
        key, value = (t.transpose(1, 2)[:, :, None] for t in self.attention.keys_values(h))
        if own is not None:
            key, value = torch.cat([own[0], key], 2), torch.cat([own[1], value], 2)
        x = x + self.attention.read_beams(h, shared, shared_bias, (key, value), own_bias)
        return self._rest(x, memory, memory_bias), (key, value)

    def _rest(self, x: Tensor, memory: KeysValues | None, memory_bias: Tensor | None) -> Tensor:
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory, memory_bias))
        return x + self.dropout(self.inner(self.inner_norm(x)))


class Stack(nn.Module):
    """Layers with one table of relative positions for all, as in T5.

    Parameters
    ----------
    shape
        Sizes.
    layers
        How many.
    causal
        Position i sees positions 0..i; else every position sees all real ones.
    cross
        Whether a memory is read.
    """

    def __init__(self, shape: Shape, layers: int, *, causal: bool, cross: bool = False):
        super().__init__()
        self.shape, self.causal = shape, causal
        self.layers = nn.ModuleList(Layer(shape, cross) for _ in range(layers))
        self.position_bias = PositionBias(shape.buckets, shape.heads)
        nn.init.normal_(self.position_bias.weight, std=shape.dim**-0.5)
        self.norm = nn.RMSNorm(shape.dim, 1e-6)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Read ``x`` [B, T, D] and return the output at each position, [B, T, D].

        ``mask`` [B, T] is True at real positions; a causal stack that is padded on the right needs none.
        """
        return self._read(x, mask, self._memory(memory), _bias_of(memory_mask, x.dtype))[0]

    def begin(
        self, x: Tensor, lengths: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Read a prefix ``x`` [B, P, D] of ``lengths`` [B], padded on the right: the output at its last real
        position, [B, 1, D], and the cache to go on from."""
        seen, bias = self._memory(memory), _bias_of(memory_mask, x.dtype)
        output, shared = self._read(x, None, seen, bias)
        last = output[torch.arange(len(x), device=x.device), lengths - 1][:, None]
        return last, Cache(shared, lengths, seen, bias)

    def step(self, x: Tensor, parents: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Read one more position for each beam: ``x`` [B, W, D] continues beams ``parents`` [B, W]."""
        row = torch.arange(len(x), device=x.device)[:, None]
        own = [(key[row, parents], value[row, parents]) for key, value in cache.own]
        read = own[0][0].shape[2] if own else 0
        at = cache.lengths + read  # [B], the position of x
        prefix = torch.arange(cache.shared[0][0].shape[2], device=x.device)  # [P]
        shared_bias = self._bias(prefix - at[:, None])[:, :, None]  # [B, H, 1, P]
        real = prefix < cache.lengths[:, None]
        shared_bias = shared_bias.masked_fill(~real[:, None, None], -torch.inf)
        own_bias = self._bias(torch.arange(-read, 1, device=x.device)[None])[:, :, None]  # [1, H, 1, l]
        grown = []
        for i, layer in enumerate(self.layers):
            x, now = layer.read_beams(  # type: ignore[operator]
                x,
                cache.shared[i],
                shared_bias,
                own[i] if own else None,
                own_bias,
                cache.memory[i] if cache.memory else None,
                cache.memory_bias,
            )
            grown.append(now)
        return self.norm(x), replace(cache, own=grown)

    def _read(
        self, x: Tensor, mask: Tensor | None, memory: Sequence[KeysValues], memory_bias: Tensor | None
    ) -> tuple[Tensor, list[KeysValues]]:
        place = torch.arange(x.shape[1], device=x.device)
        distance = place - place[:, None]  # [T, T], key minus query
        bias = self._bias(distance[None])  # [1, H, T, T]
        if self.causal:
            bias = bias.masked_fill(distance > 0, -torch.inf)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], -torch.inf)
        x, seen = self.dropout(x), []
        for i, layer in enumerate(self.layers):
            x, now = layer(x, bias, memory[i] if memory else None, memory_bias)
            seen.append(now)
        return self.dropout(self.norm(x)), seen

    def _bias(self, distance: Tensor) -> Tensor:
        """Return the biases for distances [B, ...] as [B, H, ...]."""
        bucket = relative_bucket(distance, self.shape.buckets, self.shape.furthest, not self.causal)
        return self.position_bias(bucket).movedim(-1, 1)

    def _memory(self, memory: Tensor | None) -> list[KeysValues]:
        if memory is None:
            return []
        return [layer.cross.keys_values(memory) for layer in self.layers]  # type: ignore[union-attr, operator]


def _bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return 0 where ``mask`` [B, S] is True and -inf elsewhere, as a bias [B, 1, 1, S]."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)[
        :, None, None
    ]
