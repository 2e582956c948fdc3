"""Finite scalar quantisation: a few numbers for each part of a vector, each rounded to a small grid.

Mentzer et al., "Finite scalar quantization: VQ-VAE made simple" (ICLR 2024), as in RecGPT (arXiv:2506.06270):
the vector is cut into parts, a linear map shared by all of them gives five numbers, and the grid (8, 8, 8, 6,
5) makes one vocabulary of 15,360 tokens for every part and every domain. There is no codebook to collapse.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ensuite.codes.learning import LearningConfig, learn
from ensuite.codes.tokeniser import Progress, Tokeniser
from ensuite.config import config
from ensuite.errors import EnsuiteError


@config
class FSQConfig(LearningConfig):
    """Parts, grid, and the decoder that learns where the grid's axes lie; defaults are RecGPT's."""

    least_usage: float = 0.01
    levels: int = 4
    """Parts of a vector, codes of an item; it must divide the vectors' dimension."""
    grid: tuple[int, ...] = (8, 8, 8, 6, 5)
    """Values of each number; their product is the size of the vocabulary."""
    rounding: Literal["tan", "atanh", "sigmoid"] = "tan"
    """How numbers are bounded before they are rounded: tanh shifted as in RecGPT's code, tanh shifted so that
    0 stays 0, or the sigmoid of RecGPT's paper. Weights learned with one mean nothing with another."""
    layers: int = 2
    """Decoder: Transformer layers."""
    heads: int = 8
    """Decoder: attention heads; must divide the width of a part."""
    dropout: float = 0.2
    """Decoder: dropout within and after its layers; half of it after the positions."""
    steps: int = 5000
    batch_size: int = 256
    lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1 or self.layers < 0 or self.heads < 1 or not 0 <= self.dropout < 1:
            raise ValueError("levels and heads are at least 1, layers at least 0, dropout from 0 to below 1")
        if not self.grid or min(self.grid) < 2:
            raise ValueError(f"grid = {self.grid}: at least 2 values for each number")


class FSQ(Tokeniser):
    """The two linear maps to the grid and back, and the decoder."""

    Config = FSQConfig
    kind = "fsq"
    summary = "numbers rounded to a grid: one vocabulary for every domain, as in RecGPT"
    ordered = False

    def __init__(self, config: FSQConfig, dim: int):
        super().__init__(config, dim)
        width = dim // config.levels
        if dim % config.levels or width % config.heads:
            raise EnsuiteError(
                f"fsq: {config.levels} levels (parts) of {config.heads} heads do not divide the vectors' "
                f"{dim} dimensions; choose levels and heads whose product does"
            )
        self.project_in = nn.Linear(width, len(config.grid))
        self.project_out = nn.Linear(len(config.grid), width)
        self.positions = nn.Parameter(torch.zeros(config.levels, width))
        self.dropout = nn.Dropout(config.dropout / 2)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.TransformerEncoderLayer(
                    width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
                ),
                nn.Dropout(config.dropout),
            )
            for _ in range(config.layers)
        )
        self.head = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim))
        basis = torch.tensor([math.prod(config.grid[:i]) for i in range(len(config.grid))])
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("sizes", torch.tensor(config.grid), persistent=False)
        self.basis: Tensor  # [G] int64
        self.sizes: Tensor  # [G] int64

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.config.grid),) * self.config.levels

    # -- the grid --

    def bound(self, numbers: Tensor) -> Tensor:
        """Bring ``numbers`` [..., G] into the range of the grid, whose points are the digits 0, 1, ..."""
        sizes = self.sizes.to(numbers)
        if self.config.rounding == "sigmoid":
            return (sizes - 1) * numbers.sigmoid()
        half = (sizes - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.sizes % 2 == 0, 0.5, 0.0).to(numbers)
        shift = (offset / half).tan() if self.config.rounding == "tan" else (offset / half).atanh()
        return (numbers + shift).tanh() * half - offset + self.sizes // 2

    def digits(self, index: Tensor) -> Tensor:
        """Return the digits [..., G] of tokens ``index`` [...]."""
        return index[..., None] // self.basis % self.sizes

    def index(self, digits: Tensor) -> Tensor:
        """Return the tokens [...] of ``digits`` [..., G]."""
        return (digits * self.basis).sum(-1)

    def values(self, digits: Tensor) -> Tensor:
        """Return what the decoder reads for (possibly straight-through) ``digits``: numbers in [-1, 1]."""
        return digits / (self.sizes // 2) - 1

    # -- learning --

    def loss(self, points: Tensor) -> Tensor:
        """Return the mean absolute error of the reconstruction: a scalar."""
        bounded = self.bound(self.project_in(self._parts(points)))
        digits = bounded + (bounded.round() - bounded).detach()
        return (points - self._rebuild(self.values(digits))).abs().mean()

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        learn(
            self,
            self.config,
            len(vectors),
            lambda rows: self.loss(self._points(vectors[rows])),
            generator,
            progress,
        )

    def _start(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))

    # -- codes --

    def _encode(self, points: Tensor) -> Tensor:
        return self.index(self.bound(self.project_in(self._parts(points))).round().long())

    def _decode(self, codes: Tensor, levels: int) -> Tensor:
        values = self.values(self.digits(codes).to(self.mean))  # [N, L, G]
        return self._rebuild(values * (torch.arange(codes.shape[1], device=codes.device) < levels)[:, None])

    def code_vectors(self) -> list[Tensor]:
        every = self.digits(torch.arange(self.level_sizes[0], device=self.mean.device))  # [K, G]
        return [self.project_out(self.values(every.to(self.mean)))] * self.config.levels

    def _moves(self, points: Tensor) -> Tensor:
        bounded = self.bound(self.project_in(self._parts(points)[:, -1]))  # [N, G]
        every = self.digits(torch.arange(self.level_sizes[-1], device=points.device)).to(bounded)
        return torch.cdist(bounded, every).square()

    def _parts(self, points: Tensor) -> Tensor:
        return points.unflatten(1, (self.config.levels, -1))  # [N, L, D / L]

    def _rebuild(self, values: Tensor) -> Tensor:
        x = self.dropout(self.project_out(values) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1])
