"""Codes that mean nothing: the lower bound that every other tokeniser has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.codes.tokeniser import Progress, Tokeniser, TokeniserConfig
from ensuite.config import config


@config
class RandomConfig(TokeniserConfig):
    """TIGER's "Random ID" row has 4 levels of 255."""

    standardise: bool = False
    least_usage: float = 0.0
    levels: int = 4
    """Codes of an item."""
    size: int = 255
    """Codes of each level."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1 or self.size < 2:
            raise ValueError("levels is at least 1, size at least 2")


class RandomCodes(Tokeniser):
    """Draws codes by hashing the vector: items with equal vectors have equal codes, as in all others."""

    Config = RandomConfig
    kind = "random"
    summary = "codes drawn at random: what meaningless codes are worth"
    ordered = False
    salt: Tensor  # [L, D] int64

    def __init__(self, config: RandomConfig, dim: int):
        super().__init__(config, dim)
        self.register_buffer("salt", torch.zeros(config.levels, dim, dtype=torch.int64))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (self.config.size,) * self.config.levels

    def _fit(self, points: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        drawn = torch.randint(1 << 62, self.salt.shape, generator=generator)
        self.salt.copy_(drawn * 2 + 1)

    def _encode(self, points: Tensor) -> Tensor:
        bits = points.contiguous().view(torch.int64)  # [N, D] of doubles
        bits = bits ^ (bits >> 32)
        mixed = torch.stack([(bits * salt).sum(1) for salt in self.salt], 1)  # products wrap round
        return ((mixed >> 20) & ((1 << 43) - 1)) % self.config.size

    def _decode(self, codes: Tensor, levels: int) -> None:
        return None

    def _moves(self, points: Tensor) -> Tensor:
        return points.new_zeros(len(points), self.config.size)  # one code is as good as another
