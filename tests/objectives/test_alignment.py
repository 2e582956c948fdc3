"""Alignment of two views, against computations by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ensuite.objectives.alignment import soft_info_nce, weighted_info_nce


def views(n: int = 5, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    return one, two


def test_each_item_its_own_positive_is_symmetric_info_nce():
    one, two = views()
    logits = F.normalize(one, dim=1) @ F.normalize(two, dim=1).T / 0.5
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    torch.testing.assert_close(weighted_info_nce(one, two, torch.eye(5), 0.5), expected)


def test_weights_and_debias_by_hand():
    one, two = views(3)
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 1.0]])
    e = (F.normalize(one, dim=1) @ F.normalize(two, dim=1).T / 0.5).exp()
    sums = []
    for table in (e, e.T):
        for i in range(3):
            above = sum(float(weights[i, j] * table[i, j]) for j in range(3))
            below = float(table[i].sum()) - 0.1 * sum(float(weights[i, j]) == 0 for j in range(3))
            sums.append(-torch.tensor(above / below, dtype=torch.float64).log())
    found = weighted_info_nce(one, two, weights, 0.5, debias=0.1)
    torch.testing.assert_close(found, torch.stack(sums).mean())


@pytest.mark.parametrize("temperature", [0.05, 0.2, 0.43])
def test_however_small_the_temperature_the_denominator_stays_positive(temperature: float):
    """exp(-1 / 0.2) is below 0.1: without a clamp a row of opposites would have the log of less than 0."""
    one = torch.eye(3)
    two = (one * 2 - 1).requires_grad_()  # the others lie on the far side
    loss = weighted_info_nce(-one, two, torch.eye(3), temperature, debias=0.9)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(loss >= 0)
    assert bool(torch.isfinite(two.grad).all())


def test_it_falls_as_positives_come_nearer():
    one, two = views()
    weights = torch.eye(5)
    weights[0, 1] = weights[1, 0] = 1
    far = weighted_info_nce(one, two, weights, 0.5)
    near = two.clone()
    near[1] = near[0] = one[:2].mean(0)
    assert float(weighted_info_nce(torch.cat([near[:2], one[2:]]), near, weights, 0.5)) < float(far)


def by_hand(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return cross-entropy in both directions, less the entropy of the targets."""
    targets = ((x @ x.T + y @ y.T) / 2 * temperature).softmax(1)
    logits = x @ y.T / temperature
    cross = (
        -(targets * logits.log_softmax(1)).sum(1).mean() - (targets * logits.T.log_softmax(1)).sum(1).mean()
    )
    return cross / 2 + (targets * targets.log()).sum(1).mean()


def test_soft_targets_by_hand():
    x, y = views()
    targets = ((x @ x.T + y @ y.T) / 2 * 2.0).softmax(1)
    entropy = -(targets * targets.log()).sum(1).mean()
    torch.testing.assert_close(soft_info_nce(x, y, 2.0), by_hand(x, y, 2.0) + entropy)


@pytest.mark.parametrize(("temperature", "same"), [(1.0, True), (2.0, True), (1.0, False)])
def test_equal_views_pull_no_logit_only_where_they_match_the_targets(temperature: float, same: bool):
    x, y = views()
    y = x.clone() if same else y
    logits = (x @ y.T / temperature).requires_grad_()
    targets = ((x @ x.T + y @ y.T) / 2 * temperature).softmax(1)
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(loss.detach(), soft_info_nce(x, y, temperature))
    loss.backward()
    assert (float(logits.grad.abs().max()) < 1e-12) == (same and temperature == 1)


def test_the_targets_learn_too():
    x, y = views()
    x.requires_grad_()
    soft_info_nce(x, y).backward()
    whole = x.grad.clone()
    x.grad = None
    targets = ((x @ x.T + y @ y.T) / 2).softmax(1).detach()
    ((F.cross_entropy(x @ y.T, targets) + F.cross_entropy(y @ x.T, targets)) / 2).backward()
    assert not torch.allclose(whole, x.grad, atol=1e-3)
