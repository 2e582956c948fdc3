"""The contract of searchers, and the one that looks at every item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from ensuite.serve.engine import score_blocks
from ensuite.serve.top_k import merge_top_k


class Searcher(Protocol):
    """Finds the items that score best for users' vectors. It may be asked by several threads at once."""

    def search(
        self, users: Tensor, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """Return scores and item rows of the best k, best first, equal scores by row: [B, k] each.

        ``users`` [B, D] are float32 on the CPU and finite; the rest is as `ensuite.serve.engine.Engine` has
        it.
        """
        ...


class ExactSearch:
    """Scores all item vectors ``vectors`` [V + 1, D] (row 0 is padding), block by block."""

    def __init__(self, vectors: Tensor):
        self.vectors = vectors

    def search(
        self, users: Tensor, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        blocks = score_blocks(
            lambda first, last: users @ self.vectors[first:last].T,
            len(self.vectors) - 1,
            allowed,
            excluded,
        )
        return merge_top_k(blocks, k)
