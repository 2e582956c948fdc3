"""How good are the codes? Usage, entropy, collisions, what they keep of the vectors and of neighbourhoods."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ensuite.codes.table import SemanticIdTable
from ensuite.codes.tokeniser import BLOCK, Tokeniser

NEIGHBOURS = 10
ASKED = 500  # items whose neighbours are sought
CELLS = 1 << 24  # similarities that are held at a time


@dataclass(frozen=True)
class LevelHealth:
    """One level of the codes."""

    level: int
    size: int
    used: int
    """Codes that occur."""
    usage: float
    """Their share of those that could (not more than there are items)."""
    entropy: float
    """Bits of the distribution of items over codes."""
    perplexity: float
    """2 to the entropy: as many codes as if all were used alike."""
    error: float | None
    """Share of the vectors' variance that the codes down to this level leave unexplained."""


@dataclass(frozen=True)
class Health:
    """What `compute_health` found."""

    items: int
    levels: list[LevelHealth]
    """The tokeniser's levels, without the digit."""
    shared_before: int | None
    """Items whose codes, as the tokeniser gave them, another item has too; None: not known any more."""
    largest_before: int | None
    """Items of the largest group with equal codes."""
    shared_after: int
    """The same with what was done about duplicates."""
    largest_after: int
    neighbours: float | None
    """Share of an item's 10 nearest by cosine that are among its 10 nearest by codes (levels in common,
    counted from the first where their order means something; ties at random)."""
    neighbours_by_chance: float | None
    """What codes without meaning would give."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def compute_health(
    table: SemanticIdTable,
    tokeniser: Tokeniser | None = None,
    vectors: np.ndarray | None = None,
    seed: int = 0,
) -> Health:
    """Look at a table; with the vectors [V, D] also at what was lost, with the tokeniser by level.

    Where duplicates were moved, collisions before that are known with tokeniser and vectors only.
    """
    codes = table.codes[1:]
    given = codes[:, : table.content_levels]
    moved = table.policy == "reassign"
    if moved and tokeniser is not None and vectors is not None:
        given, moved = tokeniser.encode_array(vectors), False
    errors = _errors(given, tokeniser, vectors)
    levels = []
    for level, size in enumerate(table.level_sizes[: table.content_levels]):
        counts = np.bincount(codes[:, level], minlength=size)
        share = counts[counts > 0] / max(1, len(codes))
        entropy = float(-(share * np.log2(share)).sum())
        used = int((counts > 0).sum())
        levels.append(
            LevelHealth(
                level, size, used, used / max(1, min(size, len(codes))), entropy, 2**entropy, errors[level]
            )
        )
    kept = None if vectors is None else _neighbours_kept(given, table.ordered, vectors, seed)
    chance = None if kept is None else min(1.0, NEIGHBOURS / max(1, len(codes) - 1))
    before: tuple[int | None, int | None] = (None, None) if moved else _shared(given)
    return Health(table.n_items, levels, *before, *_shared(codes), kept, chance)


def _shared(codes: np.ndarray) -> tuple[int, int]:
    """Return how many rows equal another one, and the size of the largest group of equal rows."""
    if not len(codes):
        return 0, 0
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return int(counts[counts > 1].sum()), int(counts.max())


def _errors(codes: np.ndarray, tokeniser: Tokeniser | None, vectors: np.ndarray | None) -> list[float | None]:
    levels = codes.shape[1]
    if tokeniser is None or vectors is None or not len(vectors):
        return [None] * levels
    mean = vectors.mean(0, dtype=np.float64)
    left, variance = np.zeros(levels), 0.0
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK].astype(np.float64)
        variance += np.square(block - mean).sum()
        part = torch.from_numpy(codes[start : start + BLOCK].astype(np.int64)).to(tokeniser.mean.device)
        for level in range(levels):
            rebuilt = tokeniser.decode(part, level + 1)
            if rebuilt is None:
                return [None] * levels
            left[level] += np.square(block - rebuilt.cpu().numpy()).sum()
    return [float(value / variance) if variance else 0.0 for value in left]


def _neighbours_kept(codes: np.ndarray, ordered: bool, vectors: np.ndarray, seed: int) -> float | None:
    n = len(vectors)
    k = min(NEIGHBOURS, n - 1)
    if k < 1:
        return None
    asked = np.random.default_rng(seed).permutation(n)[:ASKED]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    kept = []
    for part in np.array_split(asked, -(-len(asked) * n // CELLS)):
        cosine = unit[part] @ unit.T  # [Q, N]
        alike = np.zeros(cosine.shape, np.int16)
        same = np.ones(cosine.shape, bool)
        for level in range(codes.shape[1]):
            equal = codes[part, level, None] == codes[:, level]
            same = same & equal if ordered else equal
            alike += same
        rows = np.arange(len(part))
        cosine[rows, part], alike[rows, part] = -np.inf, -1
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        least = -np.partition(-alike, k - 1, axis=1)[:, k - 1, None]  # of the k that are most alike
        above, level_with = (alike > least).sum(1), (alike == least).sum(1)
        chance = ((k - above) / level_with)[:, None]
        of_nearest = np.take_along_axis(alike, nearest, 1)
        kept.append(np.where(of_nearest > least, 1.0, np.where(of_nearest == least, chance, 0.0)).mean(1))
    return float(np.concatenate(kept).mean())
