"""Made-up item vectors, and settings small enough for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ensuite.codes.kinds import tokeniser_class
from ensuite.codes.tokeniser import Tokeniser

NETWORK: dict[str, Any] = {
    "size": 8,
    "steps": 30,
    "batch_size": 64,
    "hidden": (16,),
    "latent": 4,
    "revive_every": 10,
    "lr": 5e-3,
}
SMALL: dict[str, dict[str, Any]] = {
    "rq-vae": NETWORK,
    "rq-k-means": {"size": 8, "iterations": 10},
    "opq": {"size": 8, "rotations": 2},
    "fsq": {"steps": 30, "batch_size": 64, "heads": 2, "layers": 1, "lr": 3e-2, "grid": (4, 3)},
    "mpq": NETWORK | {"levels": 3},
    "lsh": {"levels": 3, "planes": 3},
    "random": {"levels": 3, "size": 8},
}


def mixture(n: int = 400, dim: int = 16, clouds: int = 12, spread: float = 0.5, seed: int = 0) -> Tensor:
    """Points of a Gaussian mixture [n, dim], those of a cloud one after another in turn."""
    g = torch.Generator().manual_seed(seed)
    middles = 3 * torch.randn(clouds, dim, generator=g)
    return middles[torch.arange(n) % clouds] + spread * torch.randn(n, dim, generator=g)


def fitted(kind: str, vectors: Tensor | None = None, seed: int = 1, **settings: Any) -> Tokeniser:
    """Return a small tokeniser of a kind, fitted on the mixture."""
    vectors = mixture() if vectors is None else vectors
    cls = tokeniser_class(kind)
    made = cls(cls.Config(**(SMALL[kind] | settings)), vectors.shape[1])
    return made.fit(vectors, torch.Generator().manual_seed(seed))
