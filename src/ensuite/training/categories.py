"""The category of each item: a column of the item table, or a cluster of the items' content vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ensuite.errors import EnsuiteError
from ensuite.nn.k_means import KMeansConfig, k_means, nearest

if TYPE_CHECKING:
    import polars as pl

COLUMNS = ("categories", "category", "genres")
"""Columns that hold a category, where none is named."""

CLUSTERS = 32
"""Clusters for items that no column puts into a category."""


def categorise(
    items: pl.DataFrame, column: str, where: str, vectors: Callable[[], Tensor], seed: int
) -> Tensor:
    """Return the category of every row, from 0 without gaps: [V + 1] int64, -1 at row 0.

    Parameters
    ----------
    items
        The item table; row i is item row i + 1.
    column
        Where it says the categories, see `leaf`; empty: the first of `COLUMNS` that there is.
    where
        How messages call the table.
    vectors
        Called for the content vectors [V + 1, D] when there is no column, or it says nothing of an item.
    seed
        Of the clusters.

    Raises
    ------
    EnsuiteError
        When the column that is named is not there.
    """
    if column and column not in items.columns:
        raise EnsuiteError(
            f"{where}: codes.category = {column!r}: no such item column (there is {', '.join(items.columns)})"
        )
    found = column or next((name for name in COLUMNS if name in items.columns), None)
    leaves = [leaf(value) for value in items[found].to_list()] if found else [None] * len(items)
    numbers = {name: n for n, name in enumerate(sorted({name for name in leaves if name is not None}))}
    categories = torch.tensor([-1] + [-1 if name is None else numbers[name] for name in leaves])
    without = (categories < 0).nonzero()[1:, 0]  # not the padding
    if len(without):
        points = vectors()[without]
        generator, k = torch.Generator().manual_seed(seed), min(CLUSTERS, len(without))
        centroids = k_means(points, k, KMeansConfig(init="k-means++"), generator=generator).centroids
        categories[without] = len(numbers) + nearest(points, centroids)[0].unique(return_inverse=True)[1]
    return categories


def leaf(value: Any) -> str | None:
    """Return the category that a cell holds: itself, the end of a path, or that of the first of several
    paths; None where it holds none.

    >>> leaf([["Beauty", "Hair Care", "Shampoos"], ["Beauty", "Sets"]]), leaf(" Drama "), leaf([])
    ('Shampoos', 'Drama', None)
    """
    while isinstance(value, list):
        if not value:
            return None
        value = value[0] if isinstance(value[0], list) else value[-1]
    return None if value is None else str(value).strip() or None
