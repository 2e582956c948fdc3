"""Codes drawn at random, and a made-up model whose codes depend on all codes before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

SIZES = (4, 3, 3)


def table(n: int = 40, sizes: tuple[int, ...] = (4, 3, 3), seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    codes = np.full((n + 1, len(sizes)), -1, np.int32)
    codes[1:] = np.stack([rng.integers(0, size, n) for size in sizes], 1)
    return torch.from_numpy(codes)


class Made:
    """Log-probabilities drawn for every user and prefix; a state holds the prefixes of all beams."""

    def __init__(self, users: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.users = users
        self.tables = [
            torch.randn(users, *SIZES[: level + 1], generator=generator).mul(2).log_softmax(-1)
            for level in range(3)
        ]

    def start(self) -> tuple[torch.Tensor, Any]:
        return self.tables[0][:, None], torch.zeros(self.users, 1, 0, dtype=torch.int64)

    def step(self, codes: torch.Tensor, parents: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        row = torch.arange(self.users)[:, None]
        prefix = torch.cat([state[row, parents], codes[..., None]], 2)  # [B, W, l]
        found = self.tables[prefix.shape[2]][(row, *prefix.unbind(2))]
        return found, prefix

    def score(self, user: int, codes: list[int]) -> float:
        return sum(float(table[(user, *codes[: level + 1])]) for level, table in enumerate(self.tables))
