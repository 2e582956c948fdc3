"""The engine of retrievers whose item vectors are searched in another way than one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.evaluate.scoring import model_device
from ensuite.models.base import Model, Retriever
from ensuite.serve.engine import not_numbers
from ensuite.serve.search.searcher import Searcher


class VectorEngine:
    """Reads the histories with the model and asks a searcher for the items (an `Engine`).

    Scores are those of the searcher: of a quantised table for "pq" and "pq-pruned", near those of the model
    and in the same scale, but not equal to them.
    """

    def __init__(self, model: Model, searcher: Searcher):
        self.model = check_dot_product(model)
        self.searcher = searcher

    def top_k(
        self, history: History, k: int, allowed: Tensor | None, excluded: Sequence[np.ndarray]
    ) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            users = self.model.encode(history.to(model_device(self.model))).float().cpu()  # [B, D]
            if not bool(users.isfinite().all()):
                raise not_numbers()
            return self.searcher.search(users, k, allowed, excluded)


def check_dot_product(model: Model) -> Retriever:
    """Return the model, if its scores are dot products of a user's and an item's vector.

    Raises
    ------
    EnsuiteError
        When they are not, with the reason.
    """
    name = type(model).__name__
    if not isinstance(model, Retriever):
        raise EnsuiteError(
            f"{name} has no item vectors to search, it scores every item in its own way; only retrievers "
            "such as sasrec can have an index"
        )
    if type(model).scorer is not Retriever.scorer or type(model).catalogue is not Retriever.catalogue:
        raise EnsuiteError(
            f"{name} cannot have an index: its scores are not only dot products of a user's and an item's "
            "vector (it has a scorer of its own)"
        )
    return cast(Retriever, model)


def item_table(model: Retriever) -> Tensor:
    """Return the item vectors as searchers take them: [V + 1, D] float32 on the CPU.

    Raises
    ------
    EnsuiteError
        When a vector is not finite.
    """
    with torch.inference_mode():
        vectors = model.item_vectors().detach().float().cpu().contiguous()
    if not bool(vectors.isfinite().all()):
        raise not_numbers()
    return vectors
