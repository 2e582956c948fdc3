"""Locality-sensitive hashing: on which sides of random hyperplanes a vector lies (a baseline of TIGER)."""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.codes.tokeniser import Progress, Tokeniser, TokeniserConfig
from ensuite.config import config


@config
class LSHConfig(TokeniserConfig):
    """TIGER's row has 4 codes of 8 hyperplanes."""

    least_usage: float = 0.1
    levels: int = 4
    """Codes of an item."""
    planes: int = 8
    """Hyperplanes of each code, which has 2^planes values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1 or not 1 <= self.planes <= 16:
            raise ValueError("levels is at least 1, planes 1 to 16")


class LSH(Tokeniser):
    """Normal vectors of hyperplanes through the mean of the items."""

    Config = LSHConfig
    kind = "lsh"
    summary = "sides of random hyperplanes: codes by content, without learning"
    ordered = False
    normals: Tensor  # [L, planes, D]

    def __init__(self, config: LSHConfig, dim: int):
        super().__init__(config, dim)
        self.register_buffer("normals", torch.zeros(config.levels, config.planes, dim))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (2**self.config.planes,) * self.config.levels

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        self.normals.copy_(torch.randn(self.normals.shape, generator=generator))

    def _encode(self, points: Tensor) -> Tensor:
        sides = torch.einsum("nd,lpd->nlp", points, self.normals) > 0
        return (sides * self._weights()).sum(2)

    def _decode(self, codes: Tensor, levels: int) -> None:
        return None

    def _moves(self, points: Tensor) -> Tensor:
        """A code costs the distances to the hyperplanes that would have to be crossed."""
        distance = points @ self.normals[-1].T  # [N, planes]
        every = torch.arange(2**self.config.planes, device=points.device)
        sides = (every[:, None] & self._weights()) > 0  # [K, planes]
        return (distance.clamp(max=0).abs() @ sides.T.to(distance)) + (
            distance.clamp(min=0) @ (~sides).T.to(distance)
        )

    def _weights(self) -> Tensor:
        return 2 ** torch.arange(self.config.planes, device=self.normals.device)
