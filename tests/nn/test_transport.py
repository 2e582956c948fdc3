"""Balanced clusters: marginals of Sinkhorn, and the exact assignment beside SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ensuite.config import build_config
from ensuite.errors import EnsuiteError
from ensuite.nn.transport import Balance, find_prices, sinkhorn


def costs(n: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.3, 0.05])
def test_the_plan_has_uniform_margins(epsilon: float) -> None:
    c = costs(40, 6)
    f, g = sinkhorn(c, epsilon, 2000)
    plan = ((f[:, None] + g - c) / epsilon).exp()
    torch.testing.assert_close(plan.sum(1), torch.full((40,), 1 / 40, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=0.02, atol=0)


def test_a_good_start_needs_fewer_rounds() -> None:
    c = costs(40, 6)
    _, g = sinkhorn(c, 0.05, 2000)
    _, again = sinkhorn(c, 0.05, 1, g)
    torch.testing.assert_close(again, g, atol=1e-3, rtol=0)
    assert not torch.allclose(sinkhorn(c, 0.05, 1)[1], g, atol=1e-3)


@pytest.mark.parametrize(("n", "k"), [(60, 7), (64, 8), (9, 9), (300, 5)])
def test_exact_prices_give_the_best_assignment_of_its_sizes(n: int, k: int) -> None:
    c = costs(n, k, seed=n)
    assigned = (c - find_prices(c, Balance())).argmin(1)
    sizes = torch.bincount(assigned, minlength=k)
    assert set(sizes.tolist()) <= {n // k, -(-n // k)}
    columns = np.repeat(np.arange(k), sizes.numpy())
    row, column = linear_sum_assignment(c.numpy()[:, columns])
    best = c.numpy()[:, columns][row, column].sum()
    assert float(c.gather(1, assigned[:, None]).sum()) == pytest.approx(best, abs=1e-9)


def test_an_uneven_start_is_mended() -> None:
    """Without Sinkhorn's help all points begin in one cluster."""
    c = costs(50, 4)
    c[:, 0] -= 5
    far = Balance(iterations=1, epsilon=1e-6)
    sizes = torch.bincount((c - find_prices(c, far, torch.zeros(4))).argmin(1), minlength=4)
    assert sorted(sizes.tolist()) == [12, 12, 13, 13]


def test_sinkhorn_is_nearly_balanced() -> None:
    c = costs(400, 8)
    c[:, 0] -= 0.3
    sizes = torch.bincount((c - find_prices(c, Balance(how="sinkhorn", epsilon=0.03))).argmin(1), minlength=8)
    assert torch.bincount(c.argmin(1)).max() > 100
    assert 40 <= sizes.min() <= sizes.max() <= 60


def test_equal_points_stay_together() -> None:
    prices = find_prices(torch.ones(6, 3), Balance())
    assert torch.equal(prices, torch.zeros(3, dtype=torch.float64))
    c = costs(8, 2).repeat_interleave(3, 0)[:12]
    assigned = (c - find_prices(c, Balance())).argmin(1).view(4, 3)
    assert (assigned == assigned[:, :1]).all()


def test_settings_out_of_range_are_refused() -> None:
    for values in ({"epsilon": 0.0}, {"iterations": 0}, {"how": "greedy"}):
        with pytest.raises(EnsuiteError, match="recipe"):
            build_config(Balance, values, "recipe")
