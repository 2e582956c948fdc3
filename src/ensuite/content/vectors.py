"""Content vectors of items: their texts by a template, encoded once each, or taken from the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ensuite.content.cache import VectorCache
from ensuite.content.encoders import TextEncoder
from ensuite.content.template import render_items
from ensuite.data.integrity import cache_folder
from ensuite.errors import EnsuiteError

BATCH = 64  # texts that are encoded together
KEPT = 1024  # texts after which the cache is written

WithoutText = Literal["error", "id", "zero"]
"""What an item without any text gets: a refusal of all, its id as text, or a vector of zeros."""


@dataclass(frozen=True, eq=False)
class ContentVectors:
    """A vector for each item, and how they came about."""

    item_ids: list[Any]
    vectors: np.ndarray  # [V, D] float32; row i - 1 is item row i
    has_content: np.ndarray  # [V] bool; False where the vector is zero for want of text
    source: dict[str, Any]
    """Of what, and by what: name, hash, template, policy."""
    counts: dict[str, int]
    """items, without_text, different_texts, repeated (items whose text another has too), encoded (now)."""


def encode_items(
    items: pl.DataFrame,
    template: str,
    encoder: TextEncoder,
    *,
    where: str,
    without_text: WithoutText = "error",
    may_be_empty: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ContentVectors:
    """Return the content vectors of an item table.

    Parameters
    ----------
    items
        A row for each item, with a column `item_id`.
    template
        Columns in braces, see `ensuite.content.template.Template`.
    encoder
        Of `ensuite.content.encoders.load_encoder`.
    where
        How messages call the table.
    without_text
        See `WithoutText`.
    may_be_empty
        Whether a column may hold nothing for any item, as among a few that are new.
    cache
        Folder of known vectors; default: the user's.
    progress
        Called with (texts encoded, texts to encode).

    Raises
    ------
    EnsuiteError
        When a column is not there or empty, items have no text and the policy is error, or the encoder gives
        vectors that are not finite.
    """
    texts = render_items(items, template, where, may_be_empty=may_be_empty)
    ids = items["item_id"].to_list()
    lacking = [i for i, text in enumerate(texts) if not text]
    if lacking and without_text == "error":
        raise EnsuiteError(
            f"{where}: {len(lacking):,} of {len(texts):,} items have no text (such as {ids[lacking[0]]}); "
            "say what they get: --without-text id (their id as text) or zero (a vector of zeros)"
        )
    if without_text == "id":
        texts = [text or str(key) for text, key in zip(texts, ids)]
    different = list(dict.fromkeys(text for text in texts if text))
    known, encoded = encode_texts(different, encoder, cache, progress)
    zero = np.zeros(encoder.dim, np.float32)
    vectors = np.stack([known[text] if text else zero for text in texts])
    with_text = sum(map(bool, texts))
    return ContentVectors(
        ids,
        vectors,
        np.array([bool(text) for text in texts]),
        {
            "name": encoder.name,
            "hash": encoder.hash,
            "template": template,
            "without_text": without_text,
            "dim": encoder.dim,
        },
        {
            "items": len(texts),
            "without_text": len(lacking),
            "different_texts": len(different),
            "repeated": with_text - len(different),
            "encoded": encoded,
        },
    )


def encode_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Return the vector of each text, and how many had to be encoded now."""
    store = VectorCache(cache or cache_folder(), encoder.hash)
    known = store.read(texts)
    missing = sorted(set(texts) - known.keys(), key=lambda text: (len(text), text))  # like lengths together
    for start in range(0, len(missing), KEPT):
        part = missing[start : start + KEPT]
        blocks = []
        for at in range(0, len(part), BATCH):
            block = encoder.encode(part[at : at + BATCH])
            if not np.isfinite(block).all():
                bad = part[at + int((~np.isfinite(block)).any(1).argmax())]
                raise EnsuiteError(
                    f"encoder {encoder.name}: a vector is not finite, of the text {bad[:60]!r}"
                )
            blocks.append(block)
            if progress is not None:
                progress(start + at + len(block), len(missing))
        vectors = np.concatenate(blocks)
        store.write(part, vectors)
        known |= zip(part, vectors)
    return known, len(missing)
