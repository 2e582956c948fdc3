"""InfoNCE with false-negative masks against its definition, row by row."""

from __future__ import annotations

import math

import pytest
import torch

from ensuite.objectives.contrastive import info_nce


def views(n: int = 6, dim: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(n, dim, generator=g, dtype=torch.float64) for _ in range(2))
    return one.requires_grad_(), two.requires_grad_()


def reference(one: torch.Tensor, two: torch.Tensor, labels: list[int] | None, temperature: float) -> float:
    """For each of the 2B vectors: -log of the positive's share among itself and the negatives."""
    vectors, n = [*one.detach(), *two.detach()], len(one)
    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        positive = math.exp(float(vectors[i] @ vectors[partner]) / temperature)
        negatives = 0.0
        for j in range(2 * n):
            same = j in (i, partner) if labels is None else labels[i % n] == labels[j % n]
            negatives += 0.0 if same else math.exp(float(vectors[i] @ vectors[j]) / temperature)
        total -= math.log(positive / (positive + negatives))
    return total / (2 * n)


@pytest.mark.parametrize("labels", [None, [1, 2, 3, 4, 5, 6], [1, 2, 1, 3, 3, 3], [7] * 6])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_it_is_what_it_is_defined_to_be(labels: list[int] | None, temperature: float) -> None:
    one, two = views()
    found = info_nce(one, two, None if labels is None else torch.tensor(labels), temperature)
    assert found.item() == pytest.approx(reference(one, two, labels, temperature), rel=1e-9, abs=1e-12)


def test_distinct_labels_mask_nothing_more_than_no_labels() -> None:
    one, two = views()
    assert info_nce(one, two, torch.arange(6)).item() == pytest.approx(info_nce(one, two).item(), rel=1e-12)


def test_a_false_negative_moves_nothing_and_is_not_moved() -> None:
    """Rows 0 and 1 share a label: row 0's loss does not see row 1, in either view."""
    one, two = views(2)
    loss = info_nce(one, two, torch.tensor([4, 4]))
    assert loss.item() == 0.0
    loss.backward()
    for view in (one, two):
        assert torch.isfinite(view.grad).all()  # type: ignore[arg-type]
        assert (view.grad == 0).all()  # type: ignore[union-attr]
    unmasked = info_nce(one, two)
    assert unmasked.item() > 0.1


def test_gradients_are_those_of_the_loss() -> None:
    one, two = views(5, 3)
    labels = torch.tensor([1, 2, 2, 3, 1])
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, labels, 0.7), (one, two))


def test_large_dot_products_stay_finite_and_in_float32_under_autocast() -> None:
    one, two = (50 * v.detach().float().requires_grad_() for v in views())
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(one, two, torch.tensor([1, 1, 2, 3, 4, 5]))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    plain = info_nce(one, two, torch.tensor([1, 1, 2, 3, 4, 5]))
    assert torch.equal(loss, plain)
