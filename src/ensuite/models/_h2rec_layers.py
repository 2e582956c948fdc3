"""The layers of H2Rec: the gate over levels of codes, and the backbones that read a branch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ensuite.data.batches import History
from ensuite.models.sasrec import Block, SASRecConfig
from ensuite.nn.attention import last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.gru import GRULayer


class Gate(nn.Module):
    """Weights of C levels, from coarse to fine; they begin with more weight on the coarse ones."""

    prior: Tensor  # [C]

    def __init__(self, kind: Literal["mlp", "static", "uniform"], dim: int, levels: int):
        super().__init__()
        self.kind = kind
        self.register_buffer("prior", torch.linspace(1.0, 0.2, levels), persistent=False)
        self.logits = nn.Parameter(self.prior.clone()) if kind == "static" else None
        self.layers = None
        if kind == "mlp":
            inner = max(1, dim // 2)
            self.layers = nn.Sequential(
                linear(dim + levels, inner), nn.ReLU(), Dropout(0.1), linear(inner, levels)
            )

    def forward(self, read: Tensor) -> Tensor:
        """Return the weights, which sum to 1, for what was read, [B, L, D]: [B, L, C]."""
        prior = self.prior.expand(*read.shape[:-1], -1)
        if self.layers is not None:
            return (self.layers(torch.cat([read, prior], -1)) + prior).softmax(-1)
        logits = torch.zeros_like(self.prior) if self.logits is None else self.logits
        return logits.softmax(-1).expand_as(prior)


class Transformer(nn.Module):
    """SASRec's blocks and last norm."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim, eps=1e-8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read [B, L, D], causally or, with a ``mask`` [B, L], all that is True there: [B, L, D]."""
        for block in self.blocks:
            x = block(x) if mask is None else block(x, x, mask)
        return self.norm(x)

    def last(self, x: Tensor, history: History, mask: Tensor | None = None) -> Tensor:
        """Return the output after the last event, [B, D]; the last block is computed there only."""
        for block in self.blocks[:-1]:
            x = block(x) if mask is None else block(x, x, mask)
        last = last_positions(x, history.lengths)  # [B, 1, D]
        for block in self.blocks[-1:]:
            last = block(last, x, history.mask)
        return self.norm(last[:, 0])

    @property
    def padding(self) -> Tensor:
        """What a padded slot of the released code leaves the blocks as: [D]."""
        return self.norm.bias


class GRU(nn.Module):
    """A GRU layer, whose state is of width ``inner``, and a linear one."""

    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.layer = GRULayer(dim, inner)
        self.output = linear(inner, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read [B, L, D]: [B, L, D]."""
        return self.output(self.layer(x)[0])

    def last(self, x: Tensor, history: History, mask: Tensor | None = None) -> Tensor:
        """Return the output after the last event, [B, D]."""
        return self.output(last_positions(self.layer(x)[0], history.lengths)[:, 0])


def mix(gate: Tensor, answers: Tensor) -> Tensor:
    """Return the weighted sum over levels: [B, L or 1, C] and [B, L, C, D] give [B, L, D]."""
    return (gate[..., None] * answers).sum(2)


def legacy_slot(x: Tensor, history: History, max_length: int, padding: Tensor) -> Tensor:
    """Return slot n - 1 of histories of n events, padded on the left to ``max_length`` slots: a position of
    ``x`` [B, L, D], or ``padding`` (what broadcasts to [B, 1, D]) where the slot is padded: [B, 1, D]."""
    index = 2 * history.lengths - 1 - max_length  # counted from the first event
    found = x[torch.arange(len(x), device=x.device), index.clamp(min=0)][:, None]
    return torch.where(index[:, None, None] < 0, padding, found)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer that starts as H2Rec's do."""
    return start_linear(nn.Linear(inputs, outputs))


def start_linear(layer: nn.Linear) -> nn.Linear:
    """Draw the weights from Xavier's normal distribution; a bias begins at 0."""
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
