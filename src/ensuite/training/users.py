"""Which users a training learns from and validates on: all, or a fixed random part."""

from __future__ import annotations

import dataclasses

import numpy as np

from ensuite.data.dataset import Cases, Dataset, Events
from ensuite.training.config import RunConfig


def training_view(dataset: Dataset, config: RunConfig) -> Events:
    """Return the training events of the users that ``training.user_share`` leaves."""
    events = dataset.events("train")
    return dataclasses.replace(events, ends=np.where(_drawn(dataset, config), events.ends, events.offsets))


def validation_cases(dataset: Dataset, config: RunConfig) -> Cases:
    """Return the validation cases of those users, or of the fixed sample of them that the configuration asks
    for."""
    cases = dataset.cases("valid")
    cases = cases.take(np.flatnonzero(_drawn(dataset, config)[cases.user]))
    users, n = np.unique(cases.user), config.training.validation_users
    if 0 < n < len(users):
        some = users[np.random.default_rng(config.seed).choice(len(users), n, replace=False)]
        cases = cases.take(np.flatnonzero(np.isin(cases.user, some)))
    return cases


def _drawn(dataset: Dataset, config: RunConfig) -> np.ndarray:
    """Return which users take part: [U] bool."""
    drawn = np.ones(dataset.n_users, bool)
    if config.training.user_share < 1:
        n = max(1, round(config.training.user_share * dataset.n_users))
        drawn[:] = False
        drawn[np.random.default_rng(config.seed).choice(dataset.n_users, n, replace=False)] = True
    return drawn
