"""Nearest neighbours by content: items whose descriptions are like those of the history, whoever chose them.

The rule that needs no event at all: what a system for catalogues that it has never seen has to beat."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.models.base import BlockScorer, FittedModel
from ensuite.models.materials import Materials


@config
class ContentKNNConfig:
    """Configuration of content-kNN."""

    profile: Literal["mean", "last"] = "mean"
    """What stands for the user: the mean of the unit vectors of the history's items, or the last item's."""
    max_length: int = 50
    """How many of the last events the mean is over."""
    content_dim: int = 0
    """Numbers of a content vector; written here by the training."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length = {self.max_length}: at least 1 is needed")


class ContentKNN(FittedModel):
    """Score = cosine of the user's profile and the item's content vector; an item without content has 0."""

    Config = ContentKNNConfig
    reads = ("vectors",)
    summary = "Nearest neighbours by content: cosine to the mean, or the last, of the history"
    family = "baseline"
    state = "measured"
    vectors: Tensor  # [V + 1, D], unit length; row 0 is 0

    def __init__(self, config: ContentKNNConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("vectors", torch.zeros(n_items + 1, config.content_dim))

    @classmethod
    def sized_for(cls, config: Any, materials: Materials) -> Any:
        assert materials.vectors is not None
        return dataclasses.replace(config, content_dim=materials.vectors.shape[1])

    def take(self, materials: Materials) -> None:
        assert materials.vectors is not None
        self.vectors = F.normalize(materials.vectors[: self.n_items + 1].to(self.vectors), dim=1)

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Self:
        """Return this model with more items, by their content ``vectors`` [N, D] alone (`TakesCodes`)."""
        assert vectors is not None
        grown = copy.copy(self)
        new = F.normalize(vectors.to(self.vectors), dim=1)
        grown._buffers = {**self._buffers, "vectors": torch.cat([self.vectors, new])}
        grown.n_items = self.n_items + len(new)
        return grown

    def fit(self, events: Events) -> None:
        """Nothing is counted."""

    def catalogue(self) -> Tensor:
        return self.vectors

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        history = history.last(1 if self.config.profile == "last" else self.max_length)
        profile = F.normalize(catalogue[history.items].sum(1), dim=1)  # [B, D]; padding adds nothing
        return lambda first, last: profile @ catalogue[first:last].T
