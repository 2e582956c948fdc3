"""Samplers: what is never drawn, how often the rest is, and who shares a draw."""

from __future__ import annotations

import pytest
import torch

from ensuite.errors import EnsuiteError
from ensuite.objectives import negatives as negatives_module
from ensuite.objectives.negatives import NegativeSampler, alias_table

KINDS = ["uniform", "popularity", "in-batch", "mixed"]


def batch(n_items, sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    row = torch.repeat_interleave(torch.arange(len(sizes)) * 2, torch.tensor(sizes))  # rows may have gaps
    return torch.randint(1, n_items + 1, (len(row),), generator=g), row


def sampler(n_items, n, kind, share="position", seed=1, **options):
    counts = torch.arange(n_items + 1) % 5
    generator = torch.Generator().manual_seed(seed)
    return NegativeSampler(n_items, n, kind, share, counts=counts, generator=generator, **options)


@pytest.mark.parametrize("share", ["position", "sequence", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_range(kind, share):
    targets, row = batch(30, [3, 1, 6])
    drawn, group = sampler(30, 7, kind, share)(targets, row)
    assert drawn.shape == {"position": (10, 7), "sequence": (3, 7), "batch": (7,)}[share]
    assert drawn.dtype == torch.int64
    assert 1 <= drawn.min() <= drawn.max() <= 30
    assert (group is None) == (share != "sequence")
    if group is not None:
        assert group.tolist() == [0] * 3 + [1] + [2] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_can_be_drawn_and_padding_cannot(kind):
    targets, row = torch.arange(1, 13), torch.zeros(12, dtype=torch.int64)
    drawn, _ = sampler(12, 500, kind)(targets, row)
    seen = set(drawn.unique().tolist())
    weightless = {5, 10} if kind == "popularity" else set()
    assert seen == set(range(1, 13)) - weightless


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_popularity_follows_the_counts(power):
    counts = torch.tensor([999, 0, 1, 4, 9, 100, 0])
    s = NegativeSampler(
        6, 1, "popularity", counts=counts, power=power, generator=torch.Generator().manual_seed(5)
    )
    n = 200_000
    drawn = s.draw((1, n), torch.ones(1, dtype=torch.int64))[0]
    weight = torch.where(counts[1:] > 0, counts[1:].double() ** power, 0.0)
    p = weight / weight.sum()
    share = torch.bincount(drawn, minlength=7)[1:] / n
    assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()  # 5 standard errors
    torch.testing.assert_close(
        s.log_expected(torch.tensor([2, 5])).double(), p[[1, 4]].log(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("seed", range(40))
def test_alias_table_gives_the_weights_back(seed):
    g = torch.Generator().manual_seed(seed)
    weight = torch.rand(1 + 2 * seed, generator=g).double() ** (seed % 7)
    weight *= torch.rand(len(weight), generator=g) > 0.4 * (seed % 2)
    weight[0] += 1e-3
    keep, alias = alias_table(torch.full_like(weight, 0.1) if seed % 10 == 0 else weight)
    p = keep.double().index_add(0, alias, 1 - keep.double()) / len(weight)
    expected = torch.full_like(weight, 1 / len(weight)) if seed % 10 == 0 else weight / weight.sum()
    torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-7)
    assert not p[expected == 0].any()


def test_in_batch_and_mixed_draw_from_the_batch():
    targets, row = torch.tensor([3, 3, 3, 8]), torch.tensor([0, 0, 1, 1])
    drawn, _ = sampler(1000, 4000, "in-batch", "batch")(targets, row)
    assert set(drawn.tolist()) == {3, 8}
    assert abs((drawn == 3).float().mean() - 0.75) < 0.05
    mixed, _ = sampler(1000, 4001, "mixed", "batch")(targets, row)
    assert set(mixed[:2000].tolist()) == {3, 8}
    assert len(mixed[2000:].unique()) > 500


@pytest.mark.parametrize("by_search", [False, True])
@pytest.mark.parametrize("share", ["position", "sequence"])
@pytest.mark.parametrize("kind", KINDS)
def test_history_is_never_drawn(kind, share, by_search, monkeypatch):
    if by_search:
        monkeypatch.setattr(negatives_module, "TABLE_BYTES", 0)
    # The first sequence leaves two items, the second many, the third is all of what the others offer.
    targets = torch.cat([torch.arange(1, 11), torch.tensor([4, 4, 9]), torch.tensor([11, 12, 1])])
    row = torch.tensor([0] * 10 + [1] * 3 + [2] * 3)
    s = sampler(12, 50, kind, share, exclude_history=True)
    drawn, group = s(targets, row)
    owner = row if group is None else torch.arange(3)
    for sequence in range(3):
        mine = set(drawn[owner == sequence].flatten().tolist())
        assert mine
        assert not mine & set(targets[row == sequence].tolist())
        assert 0 not in mine


def test_exact_draw_keeps_the_proportions():
    """Nine tenths of the weight are forbidden: what is left is drawn in proportion, as if conditioned."""
    counts = torch.tensor([0, 900, 60, 40])
    s = NegativeSampler(
        3, 30_000, "popularity", "sequence", counts=counts, exclude_history=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    drawn, _ = s(torch.tensor([1]), torch.tensor([0]))
    assert abs((drawn == 2).double().mean() - 0.6) < 0.015


def test_only_forbidden_weight_falls_back_to_the_other_items():
    counts = torch.tensor([0, 5, 0, 0])
    s = NegativeSampler(3, 200, "popularity", counts=counts, exclude_history=True)
    assert set(s(torch.tensor([1]), torch.tensor([0]))[0].flatten().tolist()) == {2, 3}
    batch_of_one = NegativeSampler(3, 200, "in-batch", exclude_history=True)
    assert set(batch_of_one(torch.tensor([1]), torch.tensor([0]))[0].flatten().tolist()) == {2, 3}


def test_history_of_the_whole_catalogue_is_an_error():
    s = NegativeSampler(3, 2, exclude_history=True)
    with pytest.raises(EnsuiteError, match="all 3 items"):
        s(torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("kind", KINDS)
def test_generator_and_global_seed_repeat_the_draw(kind):
    targets, row = batch(40, [5, 5])
    first, again = (sampler(40, 6, kind, exclude_history=True)(targets, row)[0] for _ in range(2))
    assert torch.equal(first, again)
    plain = NegativeSampler(40, 6, kind, counts=torch.ones(41))
    drawn = []
    for _ in range(2):
        torch.manual_seed(4)
        drawn.append(plain(targets, row)[0])
    assert torch.equal(*drawn)


def test_state_dict_is_empty():
    assert not sampler(10, 2, "popularity").state_dict()
