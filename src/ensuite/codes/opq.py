"""Optimised product quantisation: a rotation, then each part of the vector by a codebook of its own.

Ge, He, Ke, Sun, "Optimized product quantization" (TPAMI 2014); as parallel codes of items in RPG (KDD 2025),
with 16 to 64 parts of 256 codes. The parts are those of `ensuite.codes.product`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.codes.product import ProductConfig, quantise
from ensuite.codes.tokeniser import Progress, Tokeniser, TokeniserConfig
from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.nn.k_means import nearest


@config
class OPQConfig(TokeniserConfig):
    """Parts, codes of each, and how often the rotation is mended."""

    levels: int = 4
    """Codes of an item, parts of its vector; it must divide the vectors' dimension (RPG: 16 to 64)."""
    size: int = 256
    """Codes of each part, at most 256."""
    rotations: int = 10
    """Rounds of quantising and turning; 0 = product quantisation without rotation."""
    points: int = 256
    """Most items for each code that are read: of more, a random share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1 or self.points < 1 or self.rotations < 0 or not 1 <= self.size <= 256:
            raise ValueError("levels and points are at least 1, rotations at least 0, size 1 to 256")


class OPQ(Tokeniser):
    """A rotation and a codebook for each part."""

    Config = OPQConfig
    kind = "opq"
    summary = "parallel codes of the parts of a rotated vector"
    ordered = False
    rotation: Tensor  # [D, D]
    codebooks: Tensor  # [L, K, D / L]

    def __init__(self, config: OPQConfig, dim: int):
        super().__init__(config, dim)
        if dim % config.levels:
            raise EnsuiteError(f"opq: levels = {config.levels} does not divide the vectors' {dim} dimensions")
        self.register_buffer("rotation", torch.eye(dim))
        self.register_buffer("codebooks", torch.zeros(config.levels, config.size, dim // config.levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (self.config.size,) * self.config.levels

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        c = self.config
        points = self._sample(vectors, c.size * c.points, generator)
        if len(points) < c.size:
            raise EnsuiteError(f"opq: {len(points):,} items cannot make {c.size} codes; lower size")
        self.rotation.copy_(_spread(points, c.levels) if c.rotations else self.rotation)
        for round_ in range(c.rotations + 1):
            seed = int(torch.randint(1 << 31, (), generator=generator))
            parts = ProductConfig(splits=c.levels, sub_items=c.size, points=c.points, seed=seed)
            found = quantise(points @ self.rotation, parts)
            if round_ < c.rotations:  # the rotation that takes the points nearest to their codes (Procrustes)
                left, _, right = torch.linalg.svd(points.T @ found.reconstruct().to(points))
                self.rotation.copy_(left @ right)
            if progress is not None:
                progress("rotations", round_ + 1, c.rotations + 1, None)
        self.codebooks.copy_(found.sub_vectors)

    def _encode(self, points: Tensor) -> Tensor:
        parts = (points @ self.rotation).tensor_split(self.config.levels, dim=1)
        return torch.stack([nearest(part, book)[0] for part, book in zip(parts, self.codebooks)], 1)

    def _decode(self, codes: Tensor, levels: int) -> Tensor:
        parts = [book[code] for code, book in zip(codes.T, self.codebooks)]
        parts[levels:] = [torch.zeros_like(part) for part in parts[levels:]]
        return torch.cat(parts, 1) @ self.rotation.T

    def code_vectors(self) -> list[Tensor]:
        return list(self.codebooks)

    def _moves(self, points: Tensor) -> Tensor:
        last = (points @ self.rotation).tensor_split(self.config.levels, dim=1)[-1]
        return torch.cdist(last, self.codebooks[-1]).square()


def _spread(points: Tensor, levels: int) -> Tensor:
    """Return the principal axes, dealt out so that the parts' variances have like products: [D, D]."""
    values, axes = torch.linalg.eigh(points.T @ points / len(points))
    values = values.clamp(min=1e-9 * float(values.max()))
    spread = (values / values.min()).log()  # at least 0: a part only grows
    room = points.shape[1] // levels
    parts: list[list[int]] = [[] for _ in range(levels)]
    logs = [0.0] * levels
    for axis in values.argsort(descending=True).tolist():
        at = min((i for i in range(levels) if len(parts[i]) < room), key=lambda i: logs[i])
        parts[at].append(axis)
        logs[at] += float(spread[axis])
    return axes[:, [axis for part in parts for axis in part]]
