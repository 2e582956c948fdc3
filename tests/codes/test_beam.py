"""Ordered search against the oracle that scores every item, with a made-up model whose codes depend on all
codes before them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from made_up_codes import SIZES, Made, table

from ensuite.codes.beam import beam_search, exact_scores
from ensuite.codes.parallel import sum_of_codes
from ensuite.codes.trie import Allowed, CodeTrie
from ensuite.errors import EnsuiteError


def search(made: Made, trie: CodeTrie, k: int, width: int, allowed=None, excluded=None, **more):
    limits = Allowed(trie, made.users, allowed, excluded)
    return beam_search(trie, made.start(), made.step, width=width, k=k, allowed=limits, **more)


@pytest.mark.parametrize("nodes_held", [1, 10, 1000])
def test_exact_scores_are_the_sums_along_each_tuple(nodes_held):
    codes, made = table(), Made(3)
    trie = CodeTrie(codes)
    scores = exact_scores(trie, made.start(), made.step, nodes_held)
    assert scores.shape == (3, 40)
    for user in range(3):
        for place, item in enumerate(trie.order.tolist()):
            assert scores[user, place] == pytest.approx(made.score(user, codes[item].tolist()), abs=1e-5)


def test_as_wide_as_the_catalogue_the_beam_is_exact():
    made, trie = Made(5), CodeTrie(table())
    exact = exact_scores(trie, made.start(), made.step, 1000)
    items, scores = search(made, trie, k=40, width=trie.n_items)
    best = exact.sort(dim=1, descending=True)
    assert torch.allclose(scores, best.values, atol=1e-5)
    for user in range(5):
        assert sorted(items[user].tolist()) == list(range(1, 41))
        of_item = exact[user, trie.place[items[user]]]
        assert torch.allclose(of_item, scores[user], atol=1e-5)


@pytest.mark.parametrize("width", [7, 12])
def test_narrow_beams_give_k_different_items_in_order(width):
    made, trie = Made(6), CodeTrie(table())
    items, scores = search(made, trie, k=7, width=width)
    assert all(len(set(row)) == 7 and 0 not in row for row in items.tolist())
    assert bool((scores.diff(dim=1) <= 0).all())
    exact = exact_scores(trie, made.start(), made.step, 1000)
    assert torch.allclose(exact.gather(1, trie.place[items]), scores, atol=1e-5)


def test_what_is_excluded_or_not_allowed_takes_no_place():
    made, trie = Made(4), CodeTrie(table())
    may = torch.zeros(41, dtype=torch.bool)
    may[[2, 3, 5, 8, 13, 21, 34]] = True
    excluded = torch.tensor([[0, 0], [2, 0], [34, 21], [7, 7]])
    items, scores = search(made, trie, k=7, width=7, allowed=may, excluded=excluded)
    left = [7, 6, 5, 7]
    exact = exact_scores(trie, made.start(), made.step, 1000)
    for user in range(4):
        wanted = {2, 3, 5, 8, 13, 21, 34} - set(excluded[user].tolist())
        assert set(items[user].tolist()) - {0} == wanted
        assert int((items[user] > 0).sum()) == left[user]
        assert bool(scores[user, left[user] :].isneginf().all())
        order = sorted(wanted, key=lambda i: -float(exact[user, trie.place[i]]))
        found = [float(exact[user, trie.place[i]]) for i in items[user, : left[user]].tolist()]
        assert found == [float(exact[user, trie.place[i]]) for i in order]


def test_as_many_as_are_left_are_found_whatever_the_width():
    made, trie = Made(8, seed=3), CodeTrie(table(seed=3))
    generator = torch.Generator().manual_seed(0)
    for k in (1, 3, 9, 25):
        excluded = torch.stack([torch.randperm(40, generator=generator)[: 40 - k] + 1 for _ in range(8)])
        items, _ = search(made, trie, k=k, width=k, excluded=excluded)
        for user in range(8):
            assert set(items[user].tolist()) == set(range(1, 41)) - set(excluded[user].tolist())


def test_items_of_one_tuple_stand_side_by_side():
    codes = torch.tensor([[-1, -1, -1], [1, 0, 2], [0, 0, 0], [1, 0, 2], [1, 0, 2], [2, 1, 1]])
    made = Made(1)
    trie = CodeTrie(codes)
    items, scores = search(made, trie, k=5, width=5)
    at = items[0].tolist().index(1)
    assert items[0].tolist()[at : at + 3] == [1, 3, 4]
    assert len(set(scores[0, at : at + 3].tolist())) == 1
    items, _ = search(made, trie, k=4, width=4, excluded=torch.tensor([[3]]))
    assert set(items[0].tolist()) == {1, 2, 4, 5}


def test_nothing_left_is_an_error_and_too_narrow_a_beam_too():
    made, trie = Made(1), CodeTrie(table(4))
    with pytest.raises(EnsuiteError, match="nothing can be recommended"):
        search(made, trie, k=2, width=4, excluded=torch.tensor([[1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="cannot promise"):
        search(made, trie, k=5, width=4)


def test_drawn_lists_follow_the_model_and_a_temperature_flattens_them():
    made, trie = Made(1), CodeTrie(table(12, seed=2))
    exact = exact_scores(trie, made.start(), made.step, 1000)[0]
    generator = torch.Generator().manual_seed(0)

    def drawn(temperature: float, n: int) -> Counter[int]:
        firsts: Counter[int] = Counter()
        for _ in range(n):
            items, scores = search(made, trie, k=3, width=5, temperature=temperature, generator=generator)
            assert len(set(items[0].tolist())) == 3
            assert torch.allclose(scores[0], exact[trie.place[items[0]]], atol=1e-5)
            firsts[int(items[0, 0])] += 1
        return firsts

    firsts = drawn(1.0, 1500)
    # Renormalised at each level over what leads to an item: the law of sampling code by code.
    law: dict[int, float] = {}
    codes = table(12, seed=2)[1:].tolist()
    for item, tuple_ in enumerate(codes, 1):
        p = 1.0
        for level in range(3):
            beside = {c[level] for c in codes if c[:level] == tuple_[:level]}
            weights = {c: float(made.tables[level][(0, *tuple_[:level], c)].exp()) for c in beside}
            p *= weights[tuple_[level]] / sum(weights.values())
        law[item] = p
    tuples = Counter(map(tuple, codes))
    for item, tuple_ in enumerate(codes, 1):
        if tuples[tuple(tuple_)] == 1:
            assert firsts[item] / 1500 == pytest.approx(law[item], abs=0.045)
    assert max(drawn(0.05, 40).values()) >= 30
    assert len(drawn(20.0, 300)) > len(drawn(0.3, 300))


def test_parallel_scores_are_sums_of_what_is_looked_up():
    codes = table()
    generator = torch.Generator().manual_seed(0)
    log_probs = [torch.randn(3, size, generator=generator).log_softmax(-1) for size in SIZES]
    score = sum_of_codes(log_probs, codes)
    whole = score(0, 41)
    assert bool(whole[:, 0].isneginf().all())
    for item in (1, 17, 40):
        wanted = sum(p[:, int(codes[item, level])] for level, p in enumerate(log_probs))
        assert torch.allclose(whole[:, item], wanted)
    assert torch.equal(score(5, 20), whole[:, 5:20])
    # One forward and a beam wide enough find the same best item.
    trie = CodeTrie(codes)
    start = log_probs[0][:, None], 0

    def step(codes, parents, level):
        return log_probs[level + 1][:, None].expand(-1, codes.shape[1], -1), level + 1

    _, scores = beam_search(trie, start, step, width=40, k=1, allowed=Allowed(trie, 3, None, None))
    assert torch.allclose(scores[:, 0], whole[:, 1:].amax(1))


def test_matched_leaves_count_as_the_best_beside_them():
    made, trie = Made(4), CodeTrie(table())
    matched = torch.rand(trie.n_tuples, generator=torch.Generator().manual_seed(0)) < 0.4
    plain = exact_scores(trie, made.start(), made.step, 1000)
    scores = exact_scores(trie, made.start(), made.step, 7, matched)
    leaf = torch.repeat_interleave(torch.arange(trie.n_tuples), trie.depths[3].first_leaf.diff())
    parent = trie.depths[3].parent[leaf]
    moved = 0
    for place in range(40):
        beside = [p for p in range(40) if parent[p] == parent[place] and not matched[leaf[p]]]
        same = not matched[leaf[place]] or not beside
        wanted = plain[:, place] if same else plain[:, beside].amax(1)
        assert torch.allclose(scores[:, place], wanted, atol=1e-5)
        moved += not same
    assert moved > 3
    items, found = search(made, trie, k=40, width=40, matched=matched)
    assert torch.allclose(scores.gather(1, trie.place[items]), found, atol=1e-5)
