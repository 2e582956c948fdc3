"""The sparse distillation is the dense one, in value and gradients; its teacher is what the paper says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from ensuite.objectives.transitions import TransitionDistillation

V, D = 7, 4
# item 1: edges 3 and 1; item 2: one edge; item 3: itself and another, alike; 4: many; 5, 6, 7: none
EDGES = {(1, 2): 3, (1, 5): 1, (2, 6): 2, (3, 3): 2, (3, 1): 2, (4, 1): 9, (4, 2): 1, (4, 7): 4}


def counts() -> sp.csr_matrix:
    row, column = np.array(list(EDGES)).T
    return sp.csr_matrix((np.array(list(EDGES.values()), float), (row, column)), shape=(V + 1, V + 1))


def fitted(**settings: Any) -> TransitionDistillation:
    made = TransitionDistillation(V, **settings)
    made.fit(counts())
    return made.double()


def dense_teacher(tau: float, row_norm: str, support: str) -> Tensor:
    rows = torch.zeros(V, V, dtype=torch.float64)
    for (i, j), count in EDGES.items():
        rows[i - 1, j - 1] = count
    whole = rows.amax(1) if row_norm == "max" else rows.sum(1)
    scores = rows / whole.clamp(min=1)[:, None] / tau
    if support == "edges":
        scores[(rows == 0) & (rows.sum(1, keepdim=True) > 0)] = -torch.inf
    return scores.softmax(1)


def dense_loss(teacher: Tensor, students: Tensor, items: Tensor, table: Tensor, tau: float) -> Tensor:
    log_q = (students @ table[1:].T / tau).log_softmax(1)  # [T, V]
    return -(teacher[items - 1] * log_q).sum(1).mean()


SETTINGS = [
    {"tau": 0.1, "row_norm": "max", "support": "all"},
    {"tau": 0.1, "row_norm": "sum", "support": "all"},
    {"tau": 0.5, "row_norm": "max", "support": "edges"},
    {"tau": 1.0, "row_norm": "sum", "support": "edges"},
]


def vectors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    table = torch.randn(V + 1, D, dtype=torch.float64).requires_grad_()
    students = torch.randn(9, D, dtype=torch.float64).requires_grad_()
    return students, table


ITEMS = torch.tensor([4, 1, 1, 7, 2, 4, 3, 5, 1])


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_equals_the_dense_form(settings: dict[str, Any]):
    students, table = vectors()
    wanted = dense_loss(dense_teacher(**settings), students, ITEMS, table, settings["tau"])
    got = fitted(**settings)(students, ITEMS, table)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(loss, (students, table)) for loss in (got, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert b.any()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_teacher_is_the_dense_one(settings: dict[str, Any]):
    rows = fitted(**settings).teacher(torch.arange(1, V + 1))
    torch.testing.assert_close(rows, dense_teacher(**settings), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(rows.sum(1), torch.ones(V, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows[4:], torch.full((3, V), 1 / V, dtype=torch.float64))  # nothing followed


def test_mass_of_a_single_edge():
    row = fitted(tau=0.1).teacher(torch.tensor([2]))[0]
    edge = math.exp(10) / (math.exp(10) + V - 1)
    assert row[5].item() == pytest.approx(edge, rel=1e-6)
    assert row[0].item() == pytest.approx((1 - edge) / (V - 1), rel=1e-5)
    alone = fitted(tau=0.1, support="edges").teacher(torch.tensor([2]))[0]
    assert alone.tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_a_small_temperature_overflows_nothing():
    settings = {"tau": 1e-3, "row_norm": "max", "support": "all"}  # exp(1000)
    students, table = vectors()
    loss = fitted(**settings)(students * 1e-3, ITEMS, table)
    wanted = dense_loss(dense_teacher(**settings), students * 1e-3, ITEMS, table, 1e-3)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)


def test_counted_items_are_repeated_items():
    students, table = vectors()
    ted = fitted()
    items, counts = ITEMS.unique(return_counts=True)
    each = students[: len(items)]
    once = ted(each, items, table, counts)
    again = ted(each.repeat_interleave(counts, 0), items.repeat_interleave(counts), table)
    torch.testing.assert_close(once, again)
    for a, b in zip(*(torch.autograd.grad(loss, (students, table)) for loss in (once, again))):
        torch.testing.assert_close(a, b)


def test_the_teacher_is_neither_learnt_nor_saved():
    ted = fitted()
    assert not list(ted.parameters())
    assert not ted.state_dict()


def test_no_items_and_no_counts():
    students, table = vectors()
    assert fitted()(students[:0], ITEMS[:0], table) == 0
    with pytest.raises(RuntimeError, match="call fit"):
        TransitionDistillation(V)(students, ITEMS, table)
    with pytest.raises(ValueError, match="tau = 0"):
        TransitionDistillation(V, 0.0)
