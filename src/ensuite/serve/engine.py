"""How a batch of histories becomes its best items: the contract, and the engine that asks the model itself.

Other engines answer the same call otherwise: from quantised item vectors, an approximate index, or an
exported graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.evaluate.scoring import item_blocks, model_device
from ensuite.models.base import BlockScorer, Model
from ensuite.serve.top_k import merge_top_k

SCORES_HELD = 1 << 24
"""How many scores are held at a time: 64 MiB as float32."""


EngineName = Literal["auto", "torch", "index", "onnx"]
"""The engines that a run can be loaded with, see `Recommender.of`."""


class Engine(Protocol):
    """Finds the best items of a catalogue for a padded batch of histories."""

    def top_k(
        self, history: History, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        """Return scores and item rows of the best k, best first: [B, k] each, on the CPU.

        Parameters
        ----------
        history
            B histories, padded on the right, on the CPU.
        k
            How many; the caller has checked that every history has k items left to choose from.
        allowed
            True at the rows that may be recommended, [V + 1]; None: all of 1..V.
        excluded
            The rows that must not be recommended to each history: B arrays [X] int64, ascending.

        Raises
        ------
        EnsuiteError
            When scores are not numbers, or fewer than k items have a finite one.
        """
        ...


class ModelEngine:
    """Scores the whole catalogue with the model, block by block: exact, for every system."""

    def __init__(self, model: Model):
        self.model = model
        self._catalogue: Any = None

    def top_k(
        self, history: History, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            if self._catalogue is None:
                self._catalogue = self.model.catalogue()
            score = self.model.scorer(history.to(model_device(self.model)), self._catalogue)
            scores, rows = merge_top_k(score_blocks(score, self.model.n_items, allowed, excluded), k)
        if bool(torch.isneginf(scores).any()):
            raise EnsuiteError(f"the model gives fewer than k = {k} items a finite score; ask for fewer")
        return scores, rows


def score_blocks(
    score: BlockScorer, n_items: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, scores [B, W]) of blocks of items, -inf where nothing may be recommended.

    Parameters are those of `Engine.top_k`; blocks without an allowed item are left out.
    """
    row = np.repeat(np.arange(len(excluded)), [len(rows) for rows in excluded])
    item = np.concatenate(excluded).astype(np.int64)
    for first, last in item_blocks(n_items, max(1, SCORES_HELD // len(excluded))):
        if allowed is not None and not bool(allowed[first:last].any()):
            continue
        scores = score(first, last).float().cpu()  # [B, last - first]
        if bool(scores.amax().isnan()):  # the largest is NaN when any is
            raise not_numbers()
        if allowed is not None:
            scores = scores.masked_fill(~allowed[first:last], -torch.inf)
        inside = (item >= first) & (item < last)
        scores[torch.from_numpy(row[inside]), torch.from_numpy(item[inside] - first)] = -torch.inf
        yield first, scores


def not_numbers() -> EnsuiteError:
    """Return the error of scores that are NaN."""
    return EnsuiteError("the model's scores are not numbers (NaN): its weights are damaged; train it again")
