"""From item vectors to the table of semantic ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ensuite.codes.duplicates import place
from ensuite.codes.table import Policy, SemanticIdTable
from ensuite.codes.tokeniser import Progress, Tokeniser
from ensuite.config import config_dict


def build_table(
    vectors: np.ndarray,
    item_ids: Sequence[Any],
    tokeniser: Tokeniser,
    *,
    encoder: Mapping[str, Any],
    duplicates: Policy = "digit",
    spare: int = 16,
    fitted_on: np.ndarray | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> SemanticIdTable:
    """Fit ``tokeniser`` and return the codes of all items.

    Parameters
    ----------
    vectors
        [V, D] float32, without padding.
    item_ids
        The user's keys, in the order of the vectors.
    tokeniser
        Not fitted yet.
    encoder
        What made the vectors: at least its `hash`.
    duplicates
        See `ensuite.codes.table.Policy`.
    spare
        With the policy digit: digits beyond the largest group, so that new items find one.
    fitted_on
        [V] bool, the items that the tokeniser learns from; default: all.
    seed
        Of everything that is drawn.
    device
        Where the tokeniser learns and encodes.
    progress
        See `ensuite.codes.tokeniser.Progress`.

    Raises
    ------
    EnsuiteError
        When the vectors do not suit the tokeniser, its codes collapse, or the policy finds no room.
    """
    chosen = vectors if fitted_on is None else vectors[fitted_on]
    generator = torch.Generator().manual_seed(seed)
    tokeniser.fit(torch.from_numpy(chosen).to(device), generator, progress)
    coded = tokeniser.encode_array(vectors)
    sizes = tokeniser.level_sizes
    codes = place(coded, duplicates, sizes, lambda which: tokeniser.moves(vectors[which]), spare)
    if duplicates == "digit":
        sizes = (*sizes, int(codes[:, -1].max(initial=0)) + 1 + spare)
    padding = np.full((1, len(sizes)), -1, np.int32)
    return SemanticIdTable(
        np.concatenate([padding, codes]),
        sizes,
        duplicates,
        tokeniser.ordered,
        list(item_ids),
        {
            "tokeniser": {
                "kind": tokeniser.kind,
                "settings": config_dict(tokeniser.config),
                "seed": seed,
                "hash": tokeniser.hash(),
            },
            "encoder": dict(encoder),
            "vectors": {"hash": hash_vectors(vectors), "fitted_on": len(chosen)},
        },
    )


def hash_vectors(vectors: np.ndarray) -> str:
    """Return what tells these vectors from any others."""
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()[:32]
