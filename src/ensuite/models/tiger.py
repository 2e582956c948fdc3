"""TIGER: Recommender Systems with Generative Retrieval (Rajput et al., NeurIPS 2023,
https://arxiv.org/abs/2305.05065).

Every item is a tuple of L codes made from its content. A small T5 reads the codes of the history and writes
the codes of the next item, one after another; a search over the tree of the catalogue's tuples takes the
place of a nearest-neighbour index. The authors released no code.

Two forms of it:
- ``architecture: encoder-decoder``, the paper's: the history goes through an encoder, and each prefix of a
  user's sequence is a training sample of its own.
- ``architecture: decoder``, ours: one causal stack over the stream of codes, trained at every position, so
  that a user is read once an epoch instead of once for every event.

What differs from the paper:
- The search never leaves the catalogue (the paper searches freely and drops what is no item), and excludes
  items inside it, so that k are found whenever there are k.
- The softmax at a level is over the codes of that level, not over the tokens of all levels.
- There is no user token. It is a hash of the user's number, which nobody who is not in the data has; the
  paper's own ablation puts it at 2 % of Recall@5 (Beauty .0454 with, .0446 without), and GRID (arXiv
  2507.22224) finds models better without.
- How the codes are made is a matter of the table (`ensuite codes build`), which also sizes the last level: a
  fixed 256 for the digit that tells duplicates apart can overflow.

Published (Beauty, full ranking, history items not removed): R@5 .0454, N@5 .0321, R@10 .0648, N@10 .0384;
public reproductions land at R@5 .040 to .046. See results/.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.codes.beam import Start
from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.models.generator import OrderedGenerator, T5Config
from ensuite.nn.t5 import Cache, Stack
from ensuite.objectives import Objective


@config
class TIGERConfig(T5Config):
    """Shape of the network; defaults are the paper's."""

    architecture: Literal["encoder-decoder", "decoder"] = "encoder-decoder"
    """The paper's T5, or one causal stack that learns at every position."""
    tied: bool = True
    """Score codes by the vectors of their tokens, scaled by 1 / sqrt(dim) as in T5, or by vectors of their
    own."""
    init_std: float = 1.0
    """Standard deviation of the initial token vectors (T5: 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_std <= 0:
            raise ValueError("init_std must be positive")


class TIGER(OrderedGenerator):
    """A T5, or a decoder alone, that writes the codes of the next item."""

    Config = TIGERConfig
    samples = ("prefixes", "last-position", "every-position", "sliding")
    summary = "Generative retrieval: a small T5 writes the codes of the next item"
    paper = "Rajput et al., NeurIPS 2023, arXiv:2305.05065"
    family = "generative"
    state = "measured"
    offsets: Tensor  # [L] int64, `first_tokens`

    def __init__(self, config: TIGERConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, sizes = config, config.level_sizes
        # The token of code 0 of each level; token 0 is padding, the last one begins an item.
        self.first_tokens = [1 + sum(sizes[:level]) for level in range(len(sizes))]
        self.begin_token = 1 + sum(sizes)
        self.register_buffer("offsets", torch.tensor(self.first_tokens), persistent=False)
        self.tokens = nn.Embedding(self.begin_token + 1, c.dim)
        nn.init.normal_(self.tokens.weight, std=c.init_std)
        self.head = None if c.tied else nn.Linear(c.dim, sum(sizes), bias=False)
        encodes = c.architecture == "encoder-decoder"
        self.encoder = Stack(c.shape, c.blocks, causal=False) if encodes else None
        self.decoder = Stack(c.shape, c.blocks, causal=True, cross=encodes)

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if values.get("architecture") == "decoder":
            return {**cls.defaults, "samples": {"kind": "every-position"}}
        return cls.defaults

    def item_tokens(self, items: Tensor) -> Tensor:
        """Return the tokens of ``items`` [..., n] as a stream, [..., n * L]; 0 where an item is padding."""
        codes = self.codes[items].long()  # [..., n, L]
        return torch.where(codes < 0, 0, codes + self.offsets).flatten(-2)

    def log_probs(self, hidden: Tensor, level: int) -> Tensor:
        """Return the log-probabilities of the codes of ``level``: [..., D] to [..., K]."""
        return self.logits(hidden, level).float().log_softmax(-1)

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """Return the scores of the codes of ``level``: [..., D] to [..., K]."""
        first, size = self.first_tokens[level], self.config.level_sizes[level]
        if self.head is not None:
            return hidden @ self.head.weight[first - 1 : first - 1 + size].T
        return hidden * self.config.dim**-0.5 @ self.tokens.weight[first : first + size].T

    # -- training --

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the targets' codes, the mean over targets and levels: a scalar."""
        hidden, items = self._taught(batch) if self.encoder is None else self._taught_by_prefix(batch)
        codes = self.codes[items].long()  # [T, L]
        losses = [
            F.cross_entropy(
                self.logits(hidden[:, level], level).float(),
                codes[:, level],
                label_smoothing=self.label_smoothing,
            )
            for level in range(codes.shape[1])
        ]
        return torch.stack(losses).mean()

    def _taught_by_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs that are to say the codes of each target, [T, L, D], and the targets [T], every
        one after a reading of the history before it."""
        row, position = batch.targets.nonzero(as_tuple=True)
        targets = batch.targets[row, position]
        until = torch.arange(batch.targets.shape[1], device=row.device) <= position[:, None]
        memory, mask = self._encode(batch.history.items[row] * until)
        begin = torch.full_like(targets, self.begin_token)[:, None]
        written = torch.cat([begin, self.item_tokens(targets[:, None])[:, :-1]], 1)  # [T, L]
        return self.decoder(self.tokens(written), None, memory, mask), targets

    def _taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the same of a stream in which every token is written after all before it."""
        items, targets, levels = batch.history.items, batch.targets, len(self.config.level_sizes)
        lengths = batch.history.lengths
        row = torch.arange(len(items), device=items.device)
        stream = F.pad(items, (0, 1))  # [B, n + 1]
        stream[row, lengths] = targets[row, lengths - 1]
        output = self.decoder(self.tokens(self.item_tokens(stream)[:, :-1]), None)
        row, position = targets.nonzero(as_tuple=True)  # [T]
        first = (position + 1) * levels - 1  # the last token of the item before
        written = first[:, None] + torch.arange(levels, device=first.device)  # [T, L]
        return output[row[:, None], written], targets[row, position]

    def _encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        assert self.encoder is not None
        tokens = self.item_tokens(items)  # [B, n * L]
        mask = tokens > 0
        return self.encoder(self.tokens(tokens), mask), mask

    # -- search --

    def begin(self, history: History) -> Start:
        items = history.items
        if self.encoder is None:
            lengths = history.lengths * len(self.config.level_sizes)
            hidden, cache = self.decoder.begin(self.tokens(self.item_tokens(items)), lengths)
        else:
            memory, mask = self._encode(items)
            token = torch.full_like(items[:, :1], self.begin_token)
            one = torch.ones_like(token[:, 0])
            hidden, cache = self.decoder.begin(self.tokens(token), one, memory, mask)
        return self.log_probs(hidden, 0), (0, cache)

    def step(self, codes: Tensor, parents: Tensor, state: tuple[int, Cache]) -> tuple[Tensor, Any]:
        level, cache = state
        hidden, cache = self.decoder.step(self.tokens(codes + self.first_tokens[level]), parents, cache)
        return self.log_probs(hidden, level + 1), (level + 1, cache)
