"""What accuracy does not show: how much of the catalogue is recommended, how popular it is, how varied a
list is.

All look at each case's best k items (`Ranks.lists`) and at the **training** events only:

    coverage@k         share of the catalogue that is in at least one list
    gini@k             0 when all items are recommended equally often, towards 1 when one item has every place
    novelty@k          mean surprise of a recommended item, -log2 of its smoothed share of the training events
    arp@k              average popularity: mean number of training events of a recommended item
    popularity-lift@k  popularity bias: arp@k over the mean popularity in the users' own histories, minus 1
    diversity@k        mean distance, 1 - cosine, between the items of a list, over vectors given from outside
                       (`ensuite evaluate` makes them from a genre or category column: `category_vectors`)
    rep-ratio@k        share of the places that hold items of the user's training events
    rep-bias@k         rep-ratio@k minus the share of the targets that are such items; see `repeats`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from ensuite.data.dataset import Cases, Events
from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.evaluate.metrics import check_cutoff, parse_metric
from ensuite.evaluate.ranks import Ranks
from ensuite.evaluate.repeats import BALANCE, balance
from ensuite.evaluate.scoring import ragged_rows
from ensuite.evaluate.statistics import mean_of, user_means

CATEGORY_COLUMNS = ("genres", "genre", "categories", "category", "tags")


def count_items(train: Events) -> np.ndarray:
    """Return how many events each item row has: [V + 1] int64; pass the training view only."""
    return np.bincount(train.item_idx[train.rows()], minlength=train.n_items + 1)


def compute_beyond(
    ranks: Ranks,
    names: Sequence[str],
    *,
    popularity: np.ndarray,
    events: Events | None = None,
    cases: Cases | None = None,
    vectors: np.ndarray | None = None,
) -> dict[str, float]:
    """Return each metric over the lists of all cases.

    Parameters
    ----------
    ranks
        With lists at least as long as the largest cut-off.
    popularity
        Training events of each item row, see `count_items`: [V + 1].
    events, cases
        The whole log and the cases ranked: ``popularity-lift`` reads the histories.
    vectors
        One row per item row for ``diversity``; a row of zeros is like nothing else: [V + 1, D].
    """
    out = {}
    for name in names:
        metric = parse_metric(name)
        check_cutoff(metric, ranks)
        if not metric.beyond or metric.k is None:
            raise EnsuiteError(f"metric '{name}' is computed from ranks: see `ensuite.evaluate.metrics`")
        if ranks.lists is None or ranks.lists.shape[1] < metric.k:
            raise EnsuiteError(f"metric '{name}' needs lists: call compute_ranks(..., top={metric.k})")
        if metric.base in BALANCE:
            out[name] = mean_of(user_means(balance(ranks, metric.base, metric.k), ranks.user))
            continue
        lists = ranks.lists[:, : metric.k]  # [C, k]
        items = lists[lists > 0]
        if not len(items):
            raise EnsuiteError(f"metric '{name}': no list holds an item")
        if metric.base == "coverage":
            out[name] = len(np.unique(items)) / ranks.n_items
        elif metric.base == "gini":
            out[name] = gini(np.bincount(items, minlength=ranks.n_items + 1)[1:])
        elif metric.base == "novelty":
            share = (popularity + 1) / (popularity[1:].sum() + ranks.n_items)
            out[name] = float(-np.log2(share[items]).mean())
        elif metric.base == "arp":
            out[name] = float(popularity[items].mean())
        elif metric.base == "popularity-lift":
            if events is None or cases is None:
                raise EnsuiteError(f"metric '{name}' needs the events and the cases")
            _, rows = ragged_rows(cases.history_start, cases.history_end)
            usual = float(popularity[events.item_idx[rows]].mean())
            out[name] = float(popularity[items].mean()) / max(usual, 1e-12) - 1.0
        else:
            if vectors is None:
                raise EnsuiteError(
                    f"metric '{name}' needs a vector per item: pass vectors, or name a category column"
                )
            out[name] = diversity(lists, vectors)
    return out


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of non-negative counts.

    >>> gini(np.array([3, 3, 3])), gini(np.array([0, 0, 0, 4]))
    (0.0, 0.75)
    """
    counts = np.sort(counts).astype(np.float64)
    n = len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * counts).sum() / (n * counts.sum()))


def diversity(lists: np.ndarray, vectors: np.ndarray) -> float:
    """Return the mean over lists (of two items or more) of the mean distance between their pairs."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1.0)
    total, n_lists = 0.0, 0
    for at in range(0, len(lists), 1024):  # [1024, k, D] at a time
        part = lists[at : at + 1024]
        n = (part > 0).sum(1)
        whole = n > 1
        rows = np.where((part > 0)[..., None], unit[part], 0.0)[whole]  # [C, k, D]
        together = (rows.sum(1) ** 2).sum(1) - (rows**2).sum(
            (1, 2)
        )  # twice the sum of the cosines of all pairs
        total += float((1.0 - together / (n * (n - 1))[whole]).sum())
        n_lists += int(whole.sum())
    return total / n_lists if n_lists else 0.0


def category_vectors(items: pl.DataFrame, column: str | None = None) -> np.ndarray:
    """Return a 0/1 vector per item row from a column of categories ("Comedy|Drama", or a list): [V + 1, D]
    float32.

    Parameters
    ----------
    column
        By default the first of `CATEGORY_COLUMNS` that the table has.
    """
    if column is None:
        column = next((name for name in CATEGORY_COLUMNS if name in items.columns), None)
        if column is None:
            raise EnsuiteError(
                "diversity needs a category for each item: the item table has none of the columns "
                f"{', '.join(CATEGORY_COLUMNS)}; it has {', '.join(items.columns)}"
            )
    elif column not in items.columns:
        raise EnsuiteError(f"the item table has no column '{column}'; {did_you_mean(column, items.columns)}")
    values = items[column]
    if not isinstance(values.dtype, pl.List):
        values = values.cast(pl.String).str.split("|")
    pairs = (
        pl.DataFrame({"row": np.arange(1, len(values) + 1), "category": values})
        .explode("category")
        .drop_nulls()
    )
    pairs = pairs.filter(pl.col("category").cast(pl.String) != "")
    names, code = np.unique(pairs["category"].cast(pl.String).to_numpy().astype(str), return_inverse=True)
    out = np.zeros((items.height + 1, max(1, len(names))), np.float32)
    out[pairs["row"].to_numpy(), code] = 1.0
    return out
