from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ensuite.evaluate.statistics import bootstrap_means, holm, intervals, paired_p, user_means


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = (rng.random((300, 200)) < 0.2).astype(float)  # 200 studies of 300 users, true mean .2
    covered = [i.low <= 0.2 <= i.high for i in intervals(samples, resamples=400)]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(size=(4000, 1))
    (got,) = intervals(values)
    error = values.std() / np.sqrt(len(values))
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert got.mean == pytest.approx(float(values.mean()))


def test_draws_are_seeded_and_paired():
    rng = np.random.default_rng(2)
    values = rng.random((50, 2))
    both = bootstrap_means(values, 20, seed=3)
    assert np.array_equal(both, bootstrap_means(values, 20, seed=3))
    assert not np.array_equal(both, bootstrap_means(values, 20, seed=4))
    assert np.allclose(both[:, 0], bootstrap_means(values[:, :1], 20, seed=3)[:, 0])


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(2).random((50, 2))
    whole = bootstrap_means(values, 20)
    monkeypatch.setattr("ensuite.evaluate.statistics._DRAWN_AT_ONCE", 150)
    assert np.array_equal(bootstrap_means(values, 20), whole)


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]
    assert holm(np.array([0.2])).tolist() == [0.2]
    assert holm(np.array([])).tolist() == []


def test_the_paired_test():
    rng = np.random.default_rng(3)
    a = (rng.random(3000) < 0.2).astype(float)
    better = np.where(rng.random(3000) < 0.05, 1.0, a)
    assert paired_p(a, a) == 1.0
    assert paired_p(a, a + 1) == 0.0
    assert paired_p(a[:1], a[1:2]) == 1.0
    assert paired_p(better, a) < 1e-6
    other = (rng.random(3000) < 0.2).astype(float)
    ours = paired_p(a, other)
    shuffled = stats.permutation_test(
        (a - other,),
        lambda d, axis: d.mean(axis),
        permutation_type="samples",
        n_resamples=2000,
        random_state=0,
        vectorized=True,
    )
    assert ours == pytest.approx(float(shuffled.pvalue), abs=0.04)  # t-test and sign-flip test agree


def test_cases_of_one_user_are_one_unit():
    got = user_means(np.array([[1.0, 0], [0, 0], [1, 1]]), np.array([9, 2, 9]))
    assert got.tolist() == [[0, 0], [1.0, 0.5]]
