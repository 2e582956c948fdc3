"""Residual k-means: each level clusters what the levels before it left over; no network.

GRID (arXiv 2507.22224) and others find its codes as good as those of an RQ-VAE or better. Balanced clusters
are those of MiniOneRec (arXiv 2510.24431), normalised residuals those of GRID.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ensuite.codes.tokeniser import Progress, Tokeniser, TokeniserConfig
from ensuite.config import config
from ensuite.nn.k_means import KMeansConfig, k_means, nearest
from ensuite.nn.transport import Balance


@config
class RQKMeansConfig(TokeniserConfig):
    """Levels, clusters of each, and how they are found."""

    levels: int = 3
    """Codes of an item."""
    size: int = 256
    """Clusters of each level."""
    balance: Literal["none", "sinkhorn", "exact"] = "none"
    """none: every point goes to the nearest cluster. exact: clusters of n/K points, rounded down or up.
    sinkhorn: about so many, by entropic transport."""
    epsilon: float = 0.003
    """Entropy of Sinkhorn, as a share of half the range of the distances."""
    normalise: bool = False
    """Give residuals the length 1 before each level."""
    iterations: int = 50
    """Most rounds of k-means for each level."""
    points: int = 256
    """Most items for each cluster that k-means reads: of more, a random share (balance holds for it)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("levels", "size", "iterations", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.epsilon <= 0:
            raise ValueError(f"epsilon = {self.epsilon}: above 0 is needed")


class RQKMeans(Tokeniser):
    """A codebook for each level, and prices where clusters are balanced."""

    Config = RQKMeansConfig
    kind = "rq-k-means"
    summary = "residual k-means: fast, and as good as a network"
    ordered = True
    codebooks: Tensor  # [L, K, D]
    prices: Tensor  # [L, K], 0 where nothing is balanced
    lengths: Tensor  # [L], mean length of the residuals of each level, 1 where they are not normalised

    def __init__(self, config: RQKMeansConfig, dim: int):
        super().__init__(config, dim)
        self.register_buffer("codebooks", torch.zeros(config.levels, config.size, dim))
        self.register_buffer("prices", torch.zeros(config.levels, config.size))
        self.register_buffer("lengths", torch.ones(config.levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (self.config.size,) * self.config.levels

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        c = self.config
        residual = self._sample(vectors, c.size * c.points, generator)
        means = KMeansConfig(init="k-means++", iterations=c.iterations, restarts=1, max_points=c.points)
        balance = None if c.balance == "none" else Balance(how=c.balance, epsilon=c.epsilon)
        for level in range(c.levels):
            if c.normalise:
                self.lengths[level] = residual.norm(dim=1).mean()
            found = k_means(self._input(residual), c.size, means, generator=generator, balance=balance)
            self.codebooks[level] = found.centroids
            if found.prices is not None:
                self.prices[level] = found.prices
            residual = self._step(residual, level)[1]
            if progress is not None:
                progress("levels", level + 1, c.levels, found.inertia[-1])

    def _input(self, residual: Tensor) -> Tensor:
        """Return the residuals as a level's codebook sees them."""
        if not self.config.normalise:
            return residual
        return residual / residual.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _step(self, residual: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the codes [N] of a level, and what it leaves over: [N, D]."""
        seen = self._input(residual)
        code, _ = nearest(seen, self.codebooks[level], self.prices[level])
        return code, seen - self.codebooks[level][code]

    def _encode(self, points: Tensor) -> Tensor:
        codes = []
        for level in range(self.config.levels):
            code, points = self._step(points, level)
            codes.append(code)
        return torch.stack(codes, 1)

    def _decode(self, codes: Tensor, levels: int) -> Tensor:
        total = self.codebooks.new_zeros(len(codes), self.dim)
        scale = self.lengths.cumprod(0)  # what one unit of a level's residual is worth
        for level in range(levels):
            total += scale[level] * self.codebooks[level][codes[:, level]]
        return total

    def code_vectors(self) -> list[Tensor]:
        return list(self.codebooks)

    def _moves(self, points: Tensor) -> Tensor:
        for level in range(self.config.levels - 1):
            points = self._step(points, level)[1]
        return torch.cdist(self._input(points), self.codebooks[-1]).square() - self.prices[-1]
