"""The health of codes, counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from codes.vectors import fitted, mixture

from ensuite.codes.build import build_table
from ensuite.codes.health import compute_health
from ensuite.codes.kinds import tokeniser_class
from ensuite.codes.table import SemanticIdTable


def table(codes: list[list[int]], sizes: tuple[int, ...], policy: str = "shared", ordered: bool = True):
    padded = np.array([[-1] * len(sizes), *codes], np.int32)
    return SemanticIdTable(padded, sizes, policy, ordered, list(range(len(codes))))  # type: ignore[arg-type]


def test_usage_entropy_and_collisions() -> None:
    health = compute_health(table([[0, 1, 0], [0, 1, 1], [0, 2, 0], [3, 0, 0]], (8, 3, 2), "digit"))
    first, second = health.levels  # the digit is none of them
    assert (first.used, first.usage, first.size) == (2, 2 / 4, 8)  # of 8 codes, 4 items can use 4
    assert first.entropy == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert first.perplexity == pytest.approx(2**first.entropy)
    assert (second.used, second.usage, second.entropy) == (3, 1.0, 1.5)
    assert (health.shared_before, health.largest_before) == (2, 2)
    assert (health.shared_after, health.largest_after) == (0, 1)
    assert health.neighbours is None
    assert first.error is None
    json.dumps(health.to_dict())


@pytest.mark.parametrize("ordered", [True, False])
def test_neighbours_by_hand(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items in a row of angles and one apart; one neighbour is asked for."""
    monkeypatch.setattr("ensuite.codes.health.NEIGHBOURS", 1)
    angles = np.array([0.0, 0.1, 0.3, 2.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    codes = [[0, 0], [0, 1], [0, 1], [1, 1]]
    # nearest by angle: 0 -> 1, 1 -> 0, 2 -> 1, 3 -> 2
    # most alike: 0: 1 and 2 tie (1/2); 1: 2 alone (0); 2: 1 alone (1); 3: in order, it has nothing in common
    # with any (1/3), in parallel a code with 1 and 2 (1/2)
    expected = (0.5 + 0 + 1 + (1 / 3 if ordered else 0.5)) / 4
    health = compute_health(table(codes, (2, 2), ordered=ordered), None, vectors)
    assert health.neighbours == pytest.approx(expected)
    assert health.neighbours_by_chance == pytest.approx(1 / 3)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    points = mixture()
    made = fitted("rq-k-means", points)
    codes = table(made.encode_array(points.numpy()).tolist(), made.level_sizes)
    whole = compute_health(codes, made, points.numpy())
    monkeypatch.setattr("ensuite.codes.health.CELLS", 900)
    monkeypatch.setattr("ensuite.codes.health.BLOCK", 7)
    parts = compute_health(codes, made, points.numpy())
    assert parts.neighbours == pytest.approx(whole.neighbours)
    assert [level.error for level in parts.levels] == pytest.approx([level.error for level in whole.levels])
    assert whole.levels[-1].error < whole.levels[0].error < 1
    assert whole.neighbours > 5 * whole.neighbours_by_chance


def test_errors_are_shares_of_the_variance() -> None:
    points = mixture()
    made = fitted("rq-k-means", points)
    codes = made.encode_array(points.numpy())
    health = compute_health(table(codes.tolist(), made.level_sizes), made, points.numpy())
    left = (points - made.decode(torch.from_numpy(codes).long(), 1)).square().sum()
    assert health.levels[0].error == pytest.approx(float(left / (points - points.mean(0)).square().sum()))
    random = fitted("random", points)
    health = compute_health(table(codes.tolist(), made.level_sizes), random, points.numpy())
    assert [level.error for level in health.levels] == [None] * 3


@pytest.mark.parametrize("policy", ["digit", "shared", "reassign"])
def test_a_built_table_says_what_made_it(policy: str) -> None:
    points = mixture().numpy()
    cls = tokeniser_class("rq-k-means")
    made = cls(cls.Config(levels=2, size=60), 16)
    fitted_on = np.arange(400) % 2 == 0
    built = build_table(
        points, [f"i{i}" for i in range(400)], made, encoder={"name": "x", "hash": "h"}, duplicates=policy,
        spare=3, fitted_on=fitted_on, seed=4,
    )  # fmt: skip
    alone = cls(cls.Config(levels=2, size=60), 16).fit(points[::2], torch.Generator().manual_seed(4))
    assert built.provenance["tokeniser"]["hash"] == made.hash() == alone.hash()
    assert built.provenance["tokeniser"]["settings"]["size"] == 60
    assert built.provenance["encoder"] == {"name": "x", "hash": "h"}
    assert built.provenance["vectors"]["fitted_on"] == 200
    assert built.unique == (policy != "shared")
    assert built.levels == 2 + (policy == "digit")
    if policy == "digit":
        assert built.level_sizes[-1] == built.codes[:, -1].max() + 1 + 3
    before = compute_health(built, made, points)
    assert before.shared_before > 20
    assert before.shared_after == (before.shared_before if policy == "shared" else 0)
    by_itself = compute_health(built).shared_before  # what was moved is not in the table
    assert by_itself == (None if policy == "reassign" else before.shared_before)
