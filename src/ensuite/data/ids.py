"""From the user's own keys to dense rows, by sorting and lookup, and never through float."""

from __future__ import annotations

import numpy as np
import polars as pl

CHUNK = 1 << 22


def encode(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return the rank of each id among the different ones: [N] int32 from 0, and those in ascending order.

    Numbers are ordered as numbers, text by its UTF-8 bytes.

    >>> codes, known = encode(pl.Series([30, 10, 30]))
    >>> codes.tolist(), known.to_list()
    ([1, 0, 1], [10, 30])
    """
    if ids.dtype.is_integer():
        low, high = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
        if high - low < max(len(ids), 1 << 20):
            return _encode_small(ids.to_numpy(), low, high)
    known = ids.unique().sort()
    rows = pl.DataFrame({"id": known, "code": np.arange(len(known), dtype=np.int32)})
    codes = np.empty(len(ids), np.int32)
    for start in range(0, len(ids), CHUNK):  # the join's own memory is several times that of its rows
        part = ids.slice(start, CHUNK).alias("id").to_frame()
        found = part.join(rows, on="id", how="left", maintain_order="left")["code"]
        codes[start : start + CHUNK] = found.to_numpy()
    return codes, known


def _encode_small(values: np.ndarray, low: int, high: int) -> tuple[np.ndarray, pl.Series]:
    """A table over the whole range of ids, when it is not larger than the log."""
    shifted = values - low if low else values
    there = np.zeros(high - low + 1, bool)
    there[shifted] = True
    code = np.cumsum(there, dtype=np.int32)
    code -= 1
    return code[shifted], pl.Series(np.flatnonzero(there) + low)


def compact(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Close the gaps that filters left: new codes [N] int32, and the old codes that are still there,
    ascending."""
    there = np.zeros(n, bool)
    there[codes] = True
    if there.all():
        return codes, np.arange(n)
    new = np.cumsum(there, dtype=np.int32)
    new -= 1
    return new[codes], np.flatnonzero(there)
