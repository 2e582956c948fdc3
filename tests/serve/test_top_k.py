"""Top-k over blocks against a sort of everything, with many ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensuite.serve.top_k import merge_top_k, top_k


def reference(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [1, 3, 10, 37])
@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_equals_a_stable_sort(k, levels):
    scores = np.random.default_rng(k * levels).integers(0, levels, (16, 37)).astype(np.float32)
    values, columns = top_k(torch.from_numpy(scores), k)
    assert columns.tolist() == reference(scores, k).tolist()
    assert values.tolist() == np.take_along_axis(scores, columns.numpy(), 1).tolist()


@pytest.mark.parametrize("width", [1, 4, 36, 37, 100])
def test_blocks_equal_the_whole(width):
    scores = np.random.default_rng(width).integers(0, 4, (8, 37)).astype(np.float32)
    scores[:, 5:9] = -np.inf
    blocks = [
        (first + 1, torch.from_numpy(scores[:, first : first + width])) for first in range(0, 37, width)
    ]
    _, columns = merge_top_k(blocks, 12)
    assert (columns - 1).tolist() == reference(scores, 12).tolist()


@pytest.mark.parametrize("levels", [2, 5, 10_000])
@pytest.mark.parametrize(("width", "k"), [(5_000, 1), (5_000, 10), (4_999, 7), (70_001, 30), (2_561, 10)])
def test_many_columns_equal_a_stable_sort(width, k, levels):
    """Wide enough to be looked at in chunks, with a rest that fills none, and ties between chunks."""
    scores = np.random.default_rng(width + k + levels).integers(0, levels, (3, width)).astype(np.float32)
    scores[0, : width // 2] = -np.inf
    scores[1, -1] = levels
    values, columns = top_k(torch.from_numpy(scores), k)
    assert columns.tolist() == reference(scores, k).tolist()
    assert values.tolist() == np.take_along_axis(scores, columns.numpy(), 1).tolist()
