"""Content vectors of items: their texts by a template and their images, encoded once each, or taken from the
cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ensuite.content.cache import VectorCache
from ensuite.content.encoders import TextEncoder
from ensuite.content.images import ImageEncoder, find_files, key_of_file
from ensuite.content.template import render_items
from ensuite.data.integrity import cache_folder
from ensuite.errors import EnsuiteError

BATCH = 64  # texts that are encoded together
KEPT = 1024  # texts after which the cache is written

WithoutText = Literal["error", "id", "zero"]
"""What an item without any text (or image) gets: a refusal of all, its id as text, or a vector of zeros."""


@dataclass(frozen=True, eq=False)
class ContentVectors:
    """A vector for each item, and how they came about."""

    item_ids: list[Any]
    vectors: np.ndarray  # [V, D] float32; row i - 1 is item row i
    has_content: np.ndarray  # [V] bool; False where the vector is zero for want of text and image
    source: dict[str, Any]
    """Of what, and by what: name, hash, template (of the text), images (template of their paths), policy;
    `parts`, the widths of texts and images, where the vectors hold both."""
    counts: dict[str, int]
    """items, and of texts: without_text, different_texts, repeated (items whose text another has too),
    encoded (now); the same of images, such as without_image."""


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


def encode_images(
    items: pl.DataFrame,
    template: str,
    encoder: ImageEncoder,
    *,
    where: str,
    without_image: WithoutText = "error",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ContentVectors:
    """Return the vectors of the items' images; parameters as of `encode_items`, but for ``template``: that of
    the paths of their files (`ensuite.content.images.find_files`).

    Raises
    ------
    EnsuiteError
        When a column is not there, a file is no image, or items have none and the policy is not zero.
    """
    files = find_files(items, template, where)
    ids = items["item_id"].to_list()
    lacking = [i for i, file in enumerate(files) if file is None]
    if lacking and without_image != "zero":
        raise EnsuiteError(
            f"{where}: {len(lacking):,} of {len(files):,} items have no image (such as {ids[lacking[0]]}); "
            "--without-text zero gives them a vector of zeros"
        )
    keys = ["" if file is None else key_of_file(file) for file in files]
    by_key = {key: file for key, file in zip(keys, files) if file is not None}
    known, encoded = _encode(
        list(by_key), lambda some: encoder.encode([by_key[key] for key in some]), encoder, cache, progress
    )
    zero = np.zeros(encoder.dim, np.float32)
    with_image = len(files) - len(lacking)
    return ContentVectors(
        ids,
        np.stack([known[key] if key else zero for key in keys]),
        np.array([bool(key) for key in keys]),
        {
            "name": None,
            "hash": encoder.hash,
            "images": template,
            "image_encoder": encoder.name,
            "without_text": without_image,
            "dim": encoder.dim,
        },
        {
            "items": len(files),
            "without_image": len(lacking),
            "different_images": len(by_key),
            "repeated_images": with_image - len(by_key),
            "encoded_images": encoded,
        },
    )


def join(texts: ContentVectors, images: ContentVectors) -> ContentVectors:
    """Put the vectors of the same items' texts and images side by side: [V, D_text + D_image]."""
    parts = [texts.vectors.shape[1], images.vectors.shape[1]]
    both = hashlib.sha256(f"{texts.source['hash']} {images.source['hash']}".encode()).hexdigest()[:32]
    named = {key: images.source[key] for key in ("images", "image_encoder")}
    return ContentVectors(
        texts.item_ids,
        np.concatenate([texts.vectors, images.vectors], 1),
        texts.has_content | images.has_content,
        texts.source | named | {"hash": both, "dim": sum(parts), "parts": parts},
        texts.counts | images.counts,
    )


def encode_texts(
    texts: Sequence[str],
    encoder: TextEncoder,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Return the vector of each text, and how many had to be encoded now."""
    return _encode(list(texts), encoder.encode, encoder, cache, progress)


def _encode(
    keys: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    encoder: TextEncoder | ImageEncoder,
    cache: Path | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray], int]:
    """Return the vector of each of ``keys``, from the cache or else by ``encode``, and how many it took."""
    store = VectorCache(cache or cache_folder(), encoder.hash)
    known = store.read(keys)
    missing = sorted(set(keys) - known.keys(), key=lambda key: (len(key), key))  # like lengths together
    for start in range(0, len(missing), KEPT):
        part = missing[start : start + KEPT]
        blocks = []
        for at in range(0, len(part), BATCH):
            block = encode(part[at : at + BATCH])
            if not np.isfinite(block).all():
                bad = part[at + int((~np.isfinite(block)).any(1).argmax())]
                raise EnsuiteError(f"encoder {encoder.name}: a vector is not finite, of {bad[:60]!r}")
            blocks.append(block)
            if progress is not None:
                progress(start + at + len(block), len(missing))
        vectors = np.concatenate(blocks)
        store.write(part, vectors)
        known |= zip(part, vectors)
    return known, len(missing)
