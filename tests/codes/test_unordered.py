"""Order-free search, with a made-up model that looks at which codes were written and not at their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_up_codes import SIZES, table

from ensuite.codes.unordered import CodeIndex, unordered_search
from ensuite.errors import EnsuiteError


class Made:
    """Log-probabilities drawn for every user and set of codes (-1: not written yet)."""

    def __init__(self, users: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.users = users
        shape = (users, *(size + 1 for size in SIZES), len(SIZES), max(SIZES))
        drawn = torch.randn(*shape, generator=generator).mul(2)
        for book, size in enumerate(SIZES):
            drawn[..., book, size:] = -torch.inf
        self.tables = drawn.log_softmax(-1)

    def look(self, written: torch.Tensor) -> torch.Tensor:
        row = torch.arange(self.users)[:, None]
        return self.tables[(row, *(written + 1).unbind(2))]

    def start(self) -> tuple[torch.Tensor, Any]:
        nothing = torch.full((self.users, 1, len(SIZES)), -1)
        return self.look(nothing), nothing

    def step(self, books: torch.Tensor, codes: torch.Tensor, parents: torch.Tensor, state: Any):
        row = torch.arange(self.users)[:, None]
        written = state[row, parents].clone()
        assert bool((written.gather(2, books[..., None]) == -1).all())  # a codebook is used once
        written.scatter_(2, books[..., None], codes[..., None])
        return self.look(written), written

    def score(self, user: int, codes: list[int], items: list[list[int]], order: list[int] | None) -> float:
        """Write ``codes`` in the order that the rule gives, among ``items`` that may still be meant."""
        written, total = [-1] * len(SIZES), 0.0
        for step in range(len(SIZES)):
            values = self.tables[(user, *(c + 1 for c in written))]
            left = [i for i in items if all(w in (-1, c) for w, c in zip(written, i))]
            books = [b for b in range(len(SIZES)) if written[b] == -1]
            best = {b: max(float(values[b, i[b]]) for i in left) for b in books}
            book = order[step] if order else max(books, key=lambda b: best[b])
            total += float(values[book, codes[book]])
            written[book] = codes[book]
        return total


ORDERS = pytest.mark.parametrize("order", [None, [2, 0, 1]])


@ORDERS
def test_wide_enough_it_finds_every_item_once_with_the_score_of_its_path(order):
    made, codes = Made(4), table()
    index = CodeIndex(codes, SIZES)
    items, scores, _ = unordered_search(index, made.start(), made.step, width=40, k=40, order=order)
    tuples = codes[1:].tolist()
    for user in range(4):
        assert sorted(items[user].tolist()) == list(range(1, 41))
        wanted = [made.score(user, codes[item].tolist(), tuples, order) for item in items[user].tolist()]
        assert scores[user].tolist() == pytest.approx(wanted, abs=1e-4)
        assert wanted == sorted(wanted, reverse=True)


@ORDERS
def test_as_many_as_are_left_are_found_whatever_the_width(order):
    made, index = Made(6, seed=1), CodeIndex(table(seed=1), SIZES)
    generator = torch.Generator().manual_seed(0)
    may = torch.rand(41, generator=generator) < 0.8
    may[[4, 5, 6]] = True
    for k in (1, 3, 9):
        kept = [
            may.nonzero()[:, 0][may.nonzero()[:, 0] > 0][
                torch.randperm(int(may[1:].sum()), generator=generator)[:k]
            ]
            for _ in range(6)
        ]
        excluded = torch.stack(
            [torch.where(torch.isin(torch.arange(41), x), 0, torch.arange(41)) for x in kept]
        )
        for allowed in (None, may):
            items, scores, _ = unordered_search(
                index, made.start(), made.step, width=k, k=k, allowed=allowed, excluded=excluded, order=order
            )
            assert [set(row) for row in items.tolist()] == [set(x.tolist()) for x in kept]
            assert bool((scores.diff(dim=1) <= 0).all())


def test_the_most_certain_codebook_comes_first():
    made, index = Made(5), CodeIndex(table(), SIZES)
    first: list[torch.Tensor] = []

    def step(books, codes, parents, state):
        if not first:
            first.append(books)
        return made.step(books, codes, parents, state)

    unordered_search(index, made.start(), step, width=4, k=1)
    best = made.start()[0][:, 0].amax(2).argmax(1)  # all codes are open at the root
    assert bool((first[0] == best[:, None]).all())


def test_relabelled_codebooks_give_the_same_lists():
    made, codes = Made(3), table()
    swap = [2, 0, 1]
    items, scores, _ = unordered_search(CodeIndex(codes, SIZES), made.start(), made.step, width=8, k=8)
    back = torch.tensor(swap)

    def moved(log_probs):
        return log_probs[:, :, back]

    def step(books, codes, parents, state):
        log_probs, state = made.step(back[books], codes, parents, state)
        return moved(log_probs), state

    first, state = made.start()
    index = CodeIndex(codes[:, back], [SIZES[b] for b in swap])
    other = unordered_search(index, (moved(first), state), step, width=8, k=8)
    assert torch.equal(other[0], items)
    assert torch.allclose(other[1], scores)


def test_drawn_paths_are_different_items_and_nothing_left_is_an_error():
    made, index = Made(2), CodeIndex(table(), SIZES)
    generator = torch.Generator().manual_seed(0)
    lists = {
        tuple(
            unordered_search(
                index, made.start(), made.step, width=6, k=6, temperature=1.5, generator=generator
            )[0][0].tolist()
        )
        for _ in range(20)
    }
    assert len(lists) > 5
    assert all(len(set(found)) == 6 for found in lists)
    with pytest.raises(EnsuiteError, match="nothing can be recommended to history 1"):
        unordered_search(
            index, made.start(), made.step, width=1, k=1, allowed=torch.zeros(41, dtype=torch.bool)
        )
