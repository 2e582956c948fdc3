"""How sure one can be of a mean over users, and of the difference between two models on the same users.

**Intervals**: users are drawn with replacement, 1,000 times, and the middle 95 % of the means are reported.
All models of a comparison are resampled with the same draws, so that intervals of differences are paired.

**Tests**: the paired t-test on the per-user differences. It tests what the table shows, the mean difference;
with hundreds of users or more the mean is near normal however skewed the metric, and its p-values are not
floored by a number of resamples, which Holm's correction over many models and metrics needs. The Wilcoxon
test drops all users on whom two models agree (nearly all, for hit rates) and tests a median. Urbano, Lima
and Hanjalic (SIGIR 2019) find the t-test to keep its error rate best, the bootstrap's p-values too small,
and advise against Wilcoxon's.

A user with several cases is one unit: their cases are averaged first (`user_means`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
_DRAWN_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def user_means(values: np.ndarray, user: np.ndarray) -> np.ndarray:
    """Average the cases of each user, users ascending: [C, ...] and [C] give [U, ...].

    NaN says that a case has no value: it is left out, and a user with no other case is NaN.

    >>> user_means(np.array([1.0, 0.0, 1.0]), np.array([4, 4, 9])).tolist()
    [0.5, 1.0]
    """
    users, row = np.unique(user, return_inverse=True)
    if len(users) == len(user):
        return values[np.argsort(user, kind="stable")]
    there = ~np.isnan(values)
    total, seen = (np.zeros((len(users), *values.shape[1:])) for _ in range(2))
    np.add.at(total, row, np.where(there, values, 0.0))
    np.add.at(seen, row, there)
    return np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0)


def mean_of(values: np.ndarray) -> float:
    """Return the mean of the users who have a value (are not NaN); NaN when nobody has."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else float("nan")


def bootstrap_means(values: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return the means of each column under resampling of the rows: [U, M] gives [resamples, M].

    The draws depend on U, ``resamples`` and ``seed`` only, so two calls of the same shape are paired. A mean
    is over the users drawn who have a value (are not NaN).
    """
    there = ~np.isnan(values)
    if not there.all():
        seen = bootstrap_means(there.astype(np.float64), resamples, seed)
        total = bootstrap_means(np.where(there, values, 0.0), resamples, seed)
        return np.divide(total, seen, out=np.full_like(total, np.nan), where=seen > 0)
    n = len(values)
    columns = np.ascontiguousarray(values.T, np.float64)  # [M, U]
    rng = np.random.default_rng(seed)
    out = np.empty((resamples, values.shape[1]))
    step = max(1, _DRAWN_AT_ONCE // n)
    for at in range(0, resamples, step):
        rows = min(step, resamples - at)
        drawn = rng.integers(0, n, (rows, n), dtype=np.int32)  # [R, U]
        for row in range(rows):  # how often each user was drawn, times the values: no [R, U, M] is made
            times = np.bincount(drawn[row], minlength=n)
            out[at + row] = np.einsum(
                "mu,u->m", columns, times
            )  # not a BLAS call: its threads cost more than they save
    return out / n


def intervals(
    values: np.ndarray, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Return mean and percentile bootstrap interval of each column of ``values`` [U, M].

    >>> intervals(np.ones((50, 1)))
    [Interval(mean=1.0, low=1.0, high=1.0)]
    """
    means = bootstrap_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    middle = [mean_of(column) for column in values.T]
    return [Interval(*map(float, row)) for row in zip(middle, low, high)]


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p-value of the paired t-test between the users' values ``a`` and ``b``: [U] each.

    1 when the two agree on every user, or when there is one user only.
    """
    from scipy import stats  # heavy: only when a test is asked for

    both = ~(np.isnan(a) | np.isnan(b))
    a, b = np.asarray(a, np.float64)[both], np.asarray(b, np.float64)[both]
    difference = a - b
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.ptp(difference) == 0.0:
        return 0.0  # the same difference on every user
    return float(stats.ttest_rel(a, b).pvalue)


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values, which bound the chance of any false finding among all of ``p``.

    >>> holm(np.array([0.04, 0.01, 0.03])).tolist()
    [0.06, 0.03, 0.06]
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(adjusted, 1.0)
    return out
