"""Vectors on disk by what they were made of: what was encoded once is never encoded again.

CACHE/content/ENCODER/*.safetensors    each: keys [n, 16] uint8 (of texts), vectors [n, D] float32

Files are written aside and renamed, and none is ever changed: an interrupted run keeps what it has finished,
and several processes may write at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ensuite.errors import EnsuiteError

logger = logging.getLogger(__name__)


def key_of(text: str) -> bytes:
    """Return the 16 bytes under which a text's vector is kept."""
    return hashlib.sha256(text.encode()).digest()[:16]


class VectorCache:
    """The vectors of one encoder."""

    def __init__(self, folder: Path, encoder_hash: str):
        self.folder = folder / "content" / encoder_hash

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the vectors of those of ``texts`` that are known; a damaged file counts as not there."""
        wanted = {key_of(text): text for text in texts}
        found: dict[str, np.ndarray] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                tensors = load_file(path)
                keys, vectors = tensors["keys"], tensors["vectors"]
            except (SafetensorError, OSError, KeyError) as error:
                logger.warning("%s: damaged, its texts are encoded again: %s", path, error)
                path.unlink(missing_ok=True)
                continue
            for key, vector in zip(map(bytes, keys), vectors):
                if key in wanted:
                    found[wanted[key]] = vector
        return found

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Keep the vectors [n, D] of ``texts``."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        aside = path.with_suffix(".partial")
        keys = np.frombuffer(b"".join(map(key_of, texts)), np.uint8).reshape(-1, 16)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"keys": keys, "vectors": np.ascontiguousarray(vectors, np.float32)}, aside)
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            raise EnsuiteError(
                f"{self.folder}: the cache of vectors cannot be written ({error}); give another --cache"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
