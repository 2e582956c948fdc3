"""New items for a trained retriever that has one table of them, `self.items`, for reading and for scoring."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

M = TypeVar("M", bound=Any)


def with_rows(model: M, like: Sequence[Sequence[int]]) -> M:
    """Return ``model`` with a row of its item table more for each of ``like`` (`models.base.TakesItems`)."""
    grown = copy.copy(model)  # shares every part
    grown._modules = {**model._modules, "items": model.items.grown(like, model.config.similarity)}
    grown.n_items = model.n_items + len(like)
    return grown
