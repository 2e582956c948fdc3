"""Ordered search: codes are written level by level, and only prefixes that lead to an item are kept.

A model is asked through two things: the log-probabilities of an item's first code with a state, and a
function ``step(codes, parents, state)`` that reads one more code for each beam and returns those of the next.
States are never changed in place. Scores are sums of log-probabilities; each tuple is one leaf of the trie,
so a result is in the catalogue, and in the list once, by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ensuite.codes.trie import Allowed, CodeTrie

Start = tuple[Tensor, Any]
"""Log-probabilities of the first code, [B, 1, K], and the state after the history."""

Step = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]
"""(codes [B, W] that the beams write next, the beams [B, W] of the state that they continue, the state) to
(log-probabilities of the code after, [B, W, K], the new state)."""


def beam_search(
    trie: CodeTrie,
    start: Start,
    step: Step,
    *,
    width: int,
    k: int,
    allowed: Allowed,
    matched: Tensor | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k best items of each user with their log-probabilities: [B, k] each, best first.

    Branches without an item that the user may be given are cut off before they take a place. Since every
    beam that is kept leads to one, a width of at least k gives k items whenever the user has k left; places
    beyond are item 0 with score -inf. Items that share a tuple have its score and come in ascending order.

    Parameters
    ----------
    width
        Beams that are kept at each level, W, at least k. With as many as there are tuples the search is
        exact.
    matched
        True at tuples that are found by all codes but the last, [G] bool by leaf: their last code counts as
        that of the best other leaf beside them, if there is one.
    temperature
        0: the best. Above: k tuples drawn without replacement from softmax(log p / temperature) at each
        level, in the order in which they were drawn, by Gumbel noise that is passed down the tree (Kool et
        al., ICML 2019, arXiv:1903.06059); the scores remain the model's own.
    generator
        Of the noise.
    """
    if width < k:
        raise ValueError(f"width = {width} beams cannot promise k = {k} items")
    log_probs, state = start
    node = torch.zeros(len(log_probs), 1, dtype=torch.int64, device=log_probs.device)  # [B, W]
    score = torch.zeros(node.shape, device=node.device)  # [B, W]
    rank_by, code, parent = score, node, node
    for depth in range(trie.levels):
        if depth:
            log_probs, state = step(code, parent, state)
        child, codes, real = trie.children(depth, node)  # [B, W, C] each
        if not allowed.everything:
            real = real & (allowed.count(depth + 1, child.flatten(1)).view_as(child) > 0)
        real = real & rank_by.isfinite()[..., None]
        gained = log_probs.float().gather(2, codes)  # [B, W, C]
        if matched is not None and depth == trie.levels - 1:
            best = gained.masked_fill(matched[child] | ~real, -torch.inf).amax(2, keepdim=True)
            gained = torch.where(matched[child] & best.isfinite(), best, gained)
        total = score[..., None] + gained
        keys = drawn(gained, real, rank_by, temperature, generator) if temperature else total
        keys = keys.masked_fill(~real, -torch.inf).flatten(1)
        rank_by, at = keys.topk(min(width, keys.shape[1]), dim=1)  # [B, W']
        score, node, code = (x.flatten(1).gather(1, at) for x in (total, child, codes))
        parent = at // child.shape[2]
    return _items(trie, node, score.masked_fill(rank_by.isneginf(), -torch.inf), k, allowed)


def drawn(
    gained: Tensor, real: Tensor, above: Tensor, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Return the perturbed log-probabilities of children [B, W, C] whose maximum is that of their parent,
    ``above`` [B, W]."""
    log_q = (gained / temperature).masked_fill(~real, -torch.inf)
    log_q = log_q - log_q.logsumexp(2, keepdim=True).nan_to_num(neginf=0.0)
    uniform = torch.rand(gained.shape, device=gained.device, generator=generator).clamp(min=1e-30)
    noisy = log_q - torch.log(-torch.log(uniform))  # Gumbel with location log q
    highest = noisy.amax(2, keepdim=True)
    above = above[..., None]
    v = above - noisy + torch.log1p(-torch.exp((noisy - highest).clamp(max=-1e-7)))
    moved = above - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return torch.where(noisy == highest, above.expand_as(moved), moved)


def _items(trie: CodeTrie, leaf: Tensor, score: Tensor, k: int, allowed: Allowed) -> tuple[Tensor, Tensor]:
    """Return the first k items of the tuples ``leaf`` [B, W], whose order is the list's: [B, k] each."""
    first_leaf = trie.depths[-1].first_leaf
    first, end = first_leaf[leaf], first_leaf[leaf + 1]
    most = int((end - first).max())  # items that share a tuple
    place = first[..., None] + torch.arange(most, device=leaf.device)  # [B, W, most]
    real = (place < end[..., None]) & score.isfinite()[..., None]
    place = place.clamp(max=trie.n_items - 1).flatten(1)
    real = real.flatten(1)
    if not allowed.everything:
        real = real & allowed.may(place)
    at = (~real).to(torch.int8).argsort(dim=1, stable=True)[:, :k]  # [B, k]
    real = real.gather(1, at)
    items = trie.order[place.gather(1, at)].masked_fill(~real, 0)
    scores = score.repeat_interleave(most, 1).gather(1, at).masked_fill(~real, -torch.inf)
    short = k - items.shape[1]
    if short > 0:
        items = torch.nn.functional.pad(items, (0, short))
        scores = torch.nn.functional.pad(scores, (0, short), value=-torch.inf)
    return items, scores


def exact_scores(
    trie: CodeTrie, start: Start, step: Step, nodes_held: int, matched: Tensor | None = None
) -> Tensor:
    """Return the log-probability of every item that has codes, by its place in the trie's order: [B, N].

    Every prefix of the catalogue is read once, in blocks of subtrees: the oracle that a beam is measured
    against.

    Parameters
    ----------
    nodes_held
        Prefixes, times users, that the model reads at a time.
    matched
        As for `beam_search`.
    """
    first_log_probs, first_state = start
    n_users, inner = len(first_log_probs), trie.depths[-2]
    step_width = max(1, nodes_held // n_users)
    found = []
    for low in range(0, len(inner), step_width):
        high = min(low + step_width, len(inner))
        first, end = inner.first_leaf[low], inner.first_leaf[high]
        log_probs, state, above = first_log_probs, first_state, 0
        total = first_log_probs.new_zeros(n_users, 1, dtype=torch.float32)
        for depth in range(1, trie.levels + 1):
            here = trie.depths[depth]
            a = int(torch.searchsorted(here.first_leaf, first, right=True)) - 1
            b = int(torch.searchsorted(here.first_leaf, end))
            parent = (here.parent[a:b] - above).expand(n_users, -1)  # [B, n]
            code = here.code[a:b].expand(n_users, -1)
            row = torch.arange(n_users, device=code.device)[:, None]
            gained = log_probs[row, parent, code].float()
            if matched is not None and depth == trie.levels:
                others = gained.masked_fill(matched[a:b], -torch.inf)
                best = torch.full_like(total, -torch.inf).scatter_reduce(1, parent, others, "amax")
                best = best.gather(1, parent)
                gained = torch.where(matched[a:b] & best.isfinite(), best, gained)
            total = total.gather(1, parent) + gained
            if depth < trie.levels:
                log_probs, state = step(code, parent, state)
            above = a
        found.append(total.repeat_interleave(here.first_leaf[a : b + 1].diff(), 1))
    return torch.cat(found, 1)
