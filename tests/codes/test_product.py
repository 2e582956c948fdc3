"""Product quantisation: what the codes stand for, and what cannot be quantised."""

from __future__ import annotations

import pytest
import torch

from ensuite.codes.product import ProductCodes, ProductConfig, quantise
from ensuite.errors import EnsuiteError


def vectors(n_items: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_items, dim, generator=torch.Generator().manual_seed(seed))


def test_few_distinct_parts_are_kept_to_the_bit():
    """Vectors that are put together from 5 parts in each split need 5 sub-items, and lose nothing."""
    parts, which = vectors(3 * 5, 4).view(3, 5, 4), torch.randint(0, 5, (200, 3))
    table = torch.cat([part[index] for part, index in zip(parts, which.T)], 1)  # [200, 12]
    found = quantise(table, ProductConfig(splits=3, sub_items=64))
    assert found.codes.dtype == torch.uint8
    assert found.codes.shape == (200, 3)
    torch.testing.assert_close(found.reconstruct(), table)


def test_more_splits_and_more_sub_items_are_nearer():
    table = vectors(2000, 16)

    def error(**values: int) -> float:
        return float((quantise(table, ProductConfig(**values)).reconstruct() - table).square().mean())

    assert error(splits=8) < error(splits=4) < error(splits=2) < 1
    assert error(splits=4, sub_items=256) < error(splits=4, sub_items=16)


def test_sub_items_are_the_nearest_ones():
    table = vectors(300, 6)
    found = quantise(table, ProductConfig(splits=2, sub_items=16))
    for split in range(2):
        distance = torch.cdist(table[:, 3 * split : 3 * split + 3], found.sub_vectors[split])
        assert torch.equal(distance.argmin(1), found.codes[:, split].long())


def test_scores_of_sub_items_add_up_to_the_dot_product():
    found, user = quantise(vectors(100, 12), ProductConfig(splits=3, sub_items=8)), vectors(1, 12, seed=1)[0]
    scores = found.score_sub_items(user)  # [3, 8]
    added = scores.gather(1, found.codes.T.long()).sum(0)
    torch.testing.assert_close(added, found.reconstruct() @ user)


@pytest.mark.parametrize("n_items", [1, 2, 255])
def test_fewer_items_than_sub_items(n_items):
    table = vectors(n_items, 8)
    found = quantise(table, ProductConfig(splits=4))
    assert found.sub_vectors.shape == (4, n_items, 2)
    torch.testing.assert_close(found.reconstruct(), table)


def test_the_seed_decides_and_torchs_own_state_stays():
    table, state = vectors(500, 8), torch.get_rng_state()
    settings = ProductConfig(splits=2, sub_items=32)
    once, again = quantise(table, settings), quantise(table, settings)
    assert torch.equal(once.sub_vectors, again.sub_vectors)
    assert torch.equal(torch.get_rng_state(), state)
    other = quantise(table, ProductConfig(splits=2, sub_items=32, seed=1))
    assert not torch.equal(once.sub_vectors, other.sub_vectors)


def test_progress_counts_splits():
    seen: list[tuple[int, int]] = []
    quantise(vectors(50, 8), ProductConfig(splits=4), lambda *news: seen.append(news))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_splits_that_do_not_divide_name_those_that_do():
    with pytest.raises(
        EnsuiteError, match=r"splits = 7 does not divide the 64 dim.*nearest that do are 4 and 8"
    ):
        quantise(vectors(10, 64), ProductConfig(splits=7))


def test_vectors_that_are_not_finite():
    table = vectors(10, 4)
    table[3, 1] = torch.nan
    with pytest.raises(EnsuiteError, match="not finite"):
        quantise(table, ProductConfig(splits=2))


@pytest.mark.parametrize(
    "values", [{"splits": 0}, {"sub_items": 0}, {"sub_items": 257}, {"iterations": 0}, {"points": 0}]
)
def test_settings_out_of_range(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ProductConfig(**values)


@pytest.mark.parametrize(
    ("codes", "sub_vectors", "why"),
    [
        (torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, 4, 1), "one byte for each split"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 4, 1), "one byte for each split"),
        (torch.full((3, 2), 4, dtype=torch.uint8), torch.zeros(2, 4, 1), "code 4 of 4 sub-items"),
        (torch.zeros(0, 2, dtype=torch.uint8), torch.zeros(2, 4, 1), r"\[V, M\]"),
    ],
)
def test_tables_that_do_not_fit(codes, sub_vectors, why):
    with pytest.raises(ValueError, match=why):
        ProductCodes(codes, sub_vectors)
