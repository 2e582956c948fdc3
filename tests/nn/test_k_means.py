"""K-means: what Lloyd's algorithm promises, and what happens at its edges."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ensuite.config import build_config
from ensuite.errors import EnsuiteError
from ensuite.nn import k_means as module
from ensuite.nn.k_means import KMeansConfig, k_means, nearest
from ensuite.nn.transport import Balance

INITS = ["random", "k-means++"]


def blobs(k: int = 6, each: int = 40, spread: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Well-separated clouds and their middles."""
    g = torch.Generator().manual_seed(seed)
    middles = 4 * torch.randn(k, 5, generator=g, dtype=torch.float64)
    noise = spread * torch.randn(k, each, 5, generator=g, dtype=torch.float64)
    return (middles[:, None] + noise).flatten(0, 1), middles


def settings(**fields: Any) -> KMeansConfig:
    torch.manual_seed(1)
    return KMeansConfig(**({"restarts": 1} | fields))


@pytest.mark.parametrize("init", INITS)
def test_inertia_never_rises(init: str) -> None:
    points = torch.randn(500, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inertia = k_means(points, 30, settings(init=init, iterations=30)).inertia
    assert len(inertia) > 5
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(inertia))
    assert inertia[-1] < 0.9 * inertia[0]


def test_each_point_is_assigned_to_its_nearest_centroid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 30)  # several chunks of a few points
    points, centroids = torch.randn(50, 4).double(), torch.randn(7, 4).double()
    which, distance = nearest(points, centroids)
    every = torch.stack([((points - c) ** 2).sum(1) for c in centroids], 1)  # [N, K]
    assert torch.equal(which, every.argmin(1))
    torch.testing.assert_close(distance, every.min(1).values)


def test_centroids_are_the_means_of_their_points_once_it_has_converged() -> None:
    points, _ = blobs()
    centroids = k_means(points, 6, settings(iterations=100)).centroids
    which, _ = nearest(points, centroids)
    for cluster in range(6):
        torch.testing.assert_close(centroids[cluster], points[which == cluster].mean(0))


def test_the_clouds_are_found() -> None:
    points, middles = blobs()
    found = k_means(points, 6, settings(init="k-means++", restarts=3))
    _, distance = nearest(middles, found.centroids)
    assert distance.max() < 0.01
    assert found.inertia[-1] < 0.02


def test_k_means_plus_plus_begins_in_every_cloud() -> None:
    points, _ = blobs(spread=1e-3)
    begun = module._begin(points, 6, settings(init="k-means++"))
    assert sorted(nearest(begun, blobs()[1])[0].tolist()) == list(range(6))


@pytest.mark.parametrize("init", INITS)
def test_empty_clusters_are_filled_or_harmless(init: str) -> None:
    """More clusters than distinct points: some must stay empty; nothing becomes NaN, every point is met."""
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]).repeat(20, 1)
    found = k_means(points, 10, settings(init=init))
    assert torch.isfinite(found.centroids).all()
    assert found.inertia[-1] == pytest.approx(0, abs=1e-5)


def test_an_empty_cluster_begins_anew_at_the_farthest_point() -> None:
    points = torch.tensor([[0.0], [2.0], [10.0]])
    centroids = torch.tensor([[0.0], [-50.0]])
    which, distance = nearest(points, centroids)
    assert module._average(points, which, distance, centroids).tolist() == [[4.0], [10.0]]


def test_the_best_of_several_beginnings_is_kept() -> None:
    points, _ = blobs(12)
    torch.manual_seed(5)
    single = [k_means(points, 12, KMeansConfig(restarts=1)).inertia[-1] for _ in range(6)]
    torch.manual_seed(5)
    assert k_means(points, 12, KMeansConfig(restarts=6)).inertia[-1] == min(single) < max(single)


def test_of_many_points_a_share_is_clustered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    lloyd = module._lloyd
    monkeypatch.setattr(module, "_lloyd", lambda p, *rest: seen.append(len(p)) or lloyd(p, *rest))
    points, _ = blobs()
    k_means(points, 6, settings(max_points=7))
    k_means(points, 6, settings(max_points=40))
    assert seen == [42, 240]


def test_the_same_seed_gives_the_same_clusters() -> None:
    points, _ = blobs()
    a, b = (k_means(points, 4, settings(init="k-means++")).centroids for _ in range(2))
    assert torch.equal(a, b)


def test_what_cannot_be_clustered_is_refused() -> None:
    with pytest.raises(EnsuiteError, match="3 points cannot make 4 clusters"):
        k_means(torch.randn(3, 2), 4)
    with pytest.raises(EnsuiteError, match="not finite"):
        k_means(torch.tensor([[0.0], [float("nan")]]), 1)
    with pytest.raises(EnsuiteError, match="restarts = 0"):
        build_config(KMeansConfig, {"restarts": 0}, "recipe")
    with pytest.raises(EnsuiteError, match="faiss begins at random points"):
        build_config(KMeansConfig, {"backend": "faiss", "init": "k-means++"}, "recipe")


def test_faiss_that_is_missing_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(EnsuiteError, match="pip install faiss-cpu"):
        k_means(torch.randn(30, 2), 4, settings(backend="faiss"))


def test_faiss_finds_clusters_as_good() -> None:
    pytest.importorskip("faiss")
    points = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = (k_means(points, 20, settings(backend=b, restarts=5)) for b in ("torch", "faiss"))
    assert theirs.centroids.shape == (20, 8)
    assert theirs.inertia[-1] == pytest.approx(ours.inertia[-1], rel=0.03)


@pytest.mark.parametrize("init", INITS)
def test_a_generator_of_its_own(init: str) -> None:
    points, _ = blobs()

    def found(seed: int) -> Tensor:
        torch.manual_seed(torch.seed())
        config = KMeansConfig(init=init, restarts=2, max_points=20)
        return k_means(points, 6, config, generator=torch.Generator().manual_seed(seed)).centroids

    assert torch.equal(found(3), found(3))
    assert not torch.equal(found(3), found(4))


@pytest.mark.parametrize("n", [240, 247])
def test_balanced_clusters_differ_by_one_at_most(n: int) -> None:
    points = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = k_means(points, 8, settings(iterations=15), balance=Balance())
    sizes = torch.bincount(nearest(points, found.centroids, found.prices)[0], minlength=8)
    assert set(sizes.tolist()) <= {n // 8, -(-n // 8)}
    plain = torch.bincount(nearest(points, found.centroids)[0], minlength=8)
    assert plain.max() - plain.min() > 1


def test_prices_move_the_choice_and_not_the_distance() -> None:
    points, centroids = torch.tensor([[1.0], [9.0]]), torch.tensor([[0.0], [10.0]])
    which, distance = nearest(points, centroids, torch.tensor([90.0, 0.0]))
    assert which.tolist() == [0, 0]
    assert distance.tolist() == [1.0, 81.0]


def test_faiss_has_no_balance() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="backend = torch"):
        k_means(torch.randn(30, 2), 4, settings(backend="faiss"), balance=Balance())
