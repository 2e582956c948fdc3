"""Clusters of equal size: a price for each, such that points which choose the cheapest fill all alike.

A point at squared distance c_j from cluster j chooses the j with the least c_j - p_j. Balance is then a
property of K numbers: which cluster a point belongs to depends on that point alone.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ensuite.config import config


@config
class Balance:
    """How prices are found."""

    how: Literal["sinkhorn", "exact"] = "exact"
    """sinkhorn: entropic optimal transport, sizes about equal. exact: the best assignment with sizes n/K
    rounded down or up (points that are equal to each other stay together, whatever that does to sizes)."""
    epsilon: float = 0.003
    """Entropy of Sinkhorn, as a share of half the range of the distances (LETTER's value)."""
    iterations: int = 50
    """Most rounds of Sinkhorn; exact begins with them."""

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.iterations < 1:
            raise ValueError("epsilon is above 0, iterations at least 1")


def find_prices(costs: Tensor, balance: Balance, start: Tensor | None = None) -> Tensor:
    """Return the prices of K clusters for points with ``costs`` [N, K], N >= K: [K] float64.

    ``start`` holds prices to begin with, such as those of the round before.
    """
    half = float(costs.max() - costs.min()) / 2
    if half == 0:
        return costs.new_zeros(costs.shape[1], dtype=torch.float64)
    begin = None if start is None else start.float()
    _, prices = sinkhorn(costs.float(), balance.epsilon * half, balance.iterations, begin)
    return prices.double() if balance.how == "sinkhorn" else _exact(costs.double(), prices.double())


def sinkhorn(
    costs: Tensor, epsilon: float, iterations: int, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the potentials f [N] and g [K] of entropic transport between uniform points and clusters
    (Cuturi 2013), in logarithms.

    The plan is exp((f_i + g_j - c_ij) / epsilon): its rows sum to 1 / N, and, once the rounds have
    converged, its columns to 1 / K. They end earlier when no potential moves by a hundredth of epsilon.

    >>> costs = torch.tensor([[0.0, 1.0], [0.2, 1.0]])
    >>> f, g = sinkhorn(costs, 0.05, 100)
    >>> ((f[:, None] + g - costs) / 0.05).exp().round(decimals=2)
    tensor([[0.4400, 0.0600],
            [0.0600, 0.4400]])
    """
    n, k = costs.shape
    g = costs.new_zeros(k) if start is None else start

    def rows(g: Tensor) -> Tensor:
        return -epsilon * (torch.logsumexp((g - costs) / epsilon, 1) + math.log(n))

    for _ in range(iterations):
        before = g
        g = -epsilon * (torch.logsumexp((rows(g)[:, None] - costs) / epsilon, 0) + math.log(k))
        if bool(((g - before).abs() < epsilon / 100).all()):
            break
    return rows(g), g


def _exact(costs: Tensor, prices: Tensor) -> Tensor:
    """Begin where ``prices`` assign the points, and move points along shortest paths between clusters.

    What prices assign is optimal for the sizes that come out; a path of least cost from a cluster that has
    too many points to one that has too few keeps it so (successive shortest paths). The graph has a node for
    each cluster; the edge from j to l is the point of j that moves to l most cheaply.
    """
    n, k = costs.shape
    assigned = (costs - prices).argmin(1)  # [N]
    sizes = torch.bincount(assigned, minlength=k)
    edges = costs.new_full((k, k), math.inf)
    movers = torch.zeros(k, k, dtype=torch.int64, device=costs.device)

    def look(clusters: list[int]) -> None:
        for j in clusters:
            members = (assigned == j).nonzero()[:, 0]
            edges[j] = math.inf
            if len(members):
                edges[j], which = (costs[members] - costs[members, j, None]).min(0)
                movers[j] = members[which]

    look(list(range(k)))
    low, high = n // k, -(-n // k)
    for bound, unfinished in ((high, lambda: sizes.max() > high), (low, lambda: sizes.min() < low)):
        while unfinished():
            path = _shortest(edges, sizes > bound, sizes < bound)
            moves = [(int(movers[j, to]), to) for j, to in pairwise(path)]  # before any of them is made
            for point, to in moves:
                assigned[point] = to
            sizes[path[0]] -= 1
            sizes[path[-1]] += 1
            look(path)
    return _potentials(edges)


def _shortest(edges: Tensor, sources: Tensor, sinks: Tensor) -> list[int]:
    """Return the nodes of the shortest path from any of ``sources`` to any of ``sinks`` (Bellman-Ford)."""
    distance = edges.new_full((len(edges),), math.inf)
    distance[sources] = 0
    before = torch.full_like(distance, -1, dtype=torch.int64)
    for _ in range(len(edges)):
        through, which = (distance[:, None] + edges).min(0)
        shorter = through < distance - 1e-12
        if not bool(shorter.any()):
            break
        distance = torch.where(shorter, through, distance)
        before = torch.where(shorter, which, before)
    path = [int(distance.masked_fill(~sinks, math.inf).argmin())]
    while int(before[path[-1]]) >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]


def _potentials(edges: Tensor) -> Tensor:
    """Return prices under which every point stays where it is, by the widest margin that averaging gives:
    p_l - p_j is at most the edge from j to l."""
    distance = edges.clone().fill_diagonal_(0)
    for middle in range(len(edges)):  # Floyd-Warshall
        distance = torch.minimum(distance, distance[:, middle, None] + distance[middle])
    return (distance.mean(0) - distance.mean(1)) / 2
