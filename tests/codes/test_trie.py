"""The catalogue as a prefix tree: nothing is lost, counts are right, an empty constraint is refused."""

from __future__ import annotations

import pytest
import torch
from made_up_codes import table

from ensuite.codes.trie import Allowed, CodeTrie
from ensuite.errors import EnsuiteError


def walk(trie: CodeTrie) -> dict[tuple[int, ...], list[int]]:
    """Return every tuple that can be written, and the items it stands for."""
    found: dict[tuple[int, ...], list[int]] = {}

    def down(depth: int, node: int, prefix: tuple[int, ...]) -> None:
        if depth == trie.levels:
            leaf = trie.depths[depth].first_leaf
            found[prefix] = trie.order[leaf[node] : leaf[node + 1]].tolist()
            return
        child, code, real = trie.children(depth, torch.tensor([node]))
        for c, k, there in zip(child[0].tolist(), code[0].tolist(), real[0].tolist()):
            if there:
                assert int(trie.depths[depth + 1].parent[c]) == node
                down(depth + 1, c, (*prefix, k))

    down(0, 0, ())
    return found


def test_tuples_and_items_lead_to_each_other():
    codes = table()
    trie = CodeTrie(codes)
    found = walk(trie)
    items = [item for group in found.values() for item in group]
    assert sorted(items) == list(range(1, 41))
    for prefix, group in found.items():
        assert group == sorted(group)
        assert all(tuple(codes[item].tolist()) == prefix for item in group)
    assert len(found) == trie.n_tuples < trie.n_items  # some share a tuple


def test_items_without_codes_are_left_out():
    codes = table()
    codes[7] = -1
    trie = CodeTrie(codes)
    assert trie.n_items == 39
    assert 7 not in trie.order
    assert int(trie.place[7]) == int(trie.place[0]) == 39
    codes[8, 1] = -1
    with pytest.raises(EnsuiteError, match="item row 8 has codes at some levels only"):
        CodeTrie(codes)
    with pytest.raises(EnsuiteError, match="no item has codes"):
        CodeTrie(torch.full((5, 3), -1))


def test_counts_under_every_node_are_those_of_the_items():
    codes = table()
    trie = CodeTrie(codes)
    may = torch.rand(41, generator=torch.Generator().manual_seed(1)) < 0.7
    excluded = torch.tensor([[0, 0, 0, 0], [3, 3, 9, 0], [1, 2, 5, 40]])
    for allowed, out in [(None, None), (may, None), (None, excluded), (may, excluded)]:
        count = Allowed(trie, 3, allowed, out)
        for depth in range(trie.levels + 1):
            nodes = torch.arange(len(trie.depths[depth])).expand(3, -1)
            counted = count.count(depth, nodes)
            leaf = trie.depths[depth].first_leaf
            for user in range(3):
                for node in range(nodes.shape[1]):
                    items = trie.order[leaf[node] : leaf[node + 1]].tolist()
                    left = [
                        i
                        for i in items
                        if (allowed is None or allowed[i]) and (out is None or i not in out[user])
                    ]
                    assert int(counted[user, node]) == len(left)
        places = torch.arange(trie.n_items).expand(3, -1)
        assert count.may(places).sum(1).tolist() == count.left.tolist()


def test_an_empty_constraint_is_refused():
    trie = CodeTrie(table(6))
    everything = torch.arange(1, 7)[None]
    with pytest.raises(EnsuiteError, match="nothing can be recommended to history 2"):
        Allowed(trie, 2, None, torch.cat([everything * 0, everything]))
    with pytest.raises(EnsuiteError, match="nothing can be recommended"):
        Allowed(trie, 1, torch.zeros(7, dtype=torch.bool), None)


def test_a_code_leads_to_its_child_or_to_none():
    codes = table()
    trie = CodeTrie(codes)
    node = torch.zeros(41, dtype=torch.int64)
    for level in range(3):
        node = trie.child(level, node, codes[:, level].long().clamp(min=0))
    leaf = trie.depths[-1].first_leaf
    for item in range(1, 41):
        assert item in trie.order[leaf[node[item]] : leaf[node[item] + 1]]
    there = {tuple(row) for row in codes[1:].tolist()}
    a, b, c = next((a, b, c) for a in range(4) for b in range(3) for c in range(3) if (a, b, c) not in there)
    first = trie.child(0, torch.tensor([0]), torch.tensor([a]))
    last = trie.child(2, trie.child(1, first, torch.tensor([b])), torch.tensor([c]))
    assert last.tolist() == [-1]
    assert trie.child(0, torch.tensor([0, -1]), torch.tensor([99, 0])).tolist() == [-1, -1]
