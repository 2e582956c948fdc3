"""K-means (Lloyd 1982; k-means++ of Arthur & Vassilvitskii 2007) in plain PyTorch, or by faiss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.nn.transport import Balance, find_prices

CHUNK = 1 << 21  # distances that are held at a time
ROUGH = 5  # rounds of Sinkhorn in an iteration of balanced k-means; the prices are kept for the next


@config
class KMeansConfig:
    """How clusters are sought; defaults are those of ICSRec's released code."""

    init: Literal["random", "k-means++"] = "random"
    """First centroids: distinct points at random, or each far from those before it."""
    iterations: int = 20
    """Rounds of assigning and averaging; fewer when nothing moves any more."""
    restarts: int = 5
    """Beginnings, of which the one with the least inertia is kept."""
    max_points: int = 4096
    """Most points for each cluster: of more, a random share is clustered."""
    backend: Literal["torch", "faiss"] = "torch"
    """faiss needs `pip install faiss-cpu` (or faiss-gpu) and begins at random points."""

    def __post_init__(self) -> None:
        for name in ("iterations", "restarts", "max_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.backend == "faiss" and self.init != "random":
            raise ValueError(f"init = {self.init} needs backend = torch: faiss begins at random points")


@dataclass(frozen=True)
class Clusters:
    """What `k_means` found."""

    centroids: Tensor  # [K, D]
    inertia: list[float]
    """Mean squared distance to the nearest centroid, before each iteration and after the last."""
    prices: Tensor | None = None  # [K] float64, of balanced clusters


@torch.no_grad()
def k_means(
    points: Tensor,
    k: int,
    settings: KMeansConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    balance: Balance | None = None,
) -> Clusters:
    """Cluster ``points`` [N, D] into ``k`` by squared Euclidean distance.

    A cluster that loses all its points begins anew at the point that lies farthest from its centroid, so that
    inertia never rises. Random numbers are drawn on the CPU, from ``generator`` or PyTorch's own: the same on
    every device. With ``balance`` clusters have equal sizes, see there.

    Raises
    ------
    EnsuiteError
        When there are fewer points than clusters, a point is not finite, or faiss is asked for and missing.
    """
    settings = settings or KMeansConfig()
    if len(points) < k:
        raise EnsuiteError(f"{len(points):,} points cannot make {k:,} clusters; ask for fewer clusters")
    if not bool(torch.isfinite(points).all()):
        raise EnsuiteError("k-means: some points are not finite; lower the learning rate")
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    if len(points) > k * settings.max_points:
        order = torch.randperm(len(points), generator=generator)
        points = points[order[: k * settings.max_points].to(points.device)]
    if settings.backend == "faiss":
        if balance is not None:
            raise ValueError("balanced clusters need backend = torch")
        return _faiss(points, k, settings, generator)
    found = (
        _lloyd(points, _begin(points, k, settings, generator), settings, balance)
        for _ in range(settings.restarts)
    )
    return min(found, key=lambda clusters: clusters.inertia[-1])


def nearest(points: Tensor, centroids: Tensor, prices: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return each point's nearest centroid and the squared distance to it: [N] int64 and [N].

    With ``prices`` [K] it is the one whose squared distance less its price is least.

    >>> nearest(torch.tensor([[1.0], [9.0]]), torch.tensor([[0.0], [10.0]]))
    (tensor([0, 1]), tensor([1., 1.]))
    """
    norms = (centroids * centroids).sum(1)  # [K]
    if prices is not None:
        norms = norms - prices.to(norms)
    best, which = [], []
    for chunk in points.split(max(1, CHUNK // len(centroids))):
        least, index = torch.addmm(norms, chunk, centroids.T, alpha=-2).min(1)  # |x|^2 moves no minimum
        if prices is not None:
            least = least + prices.to(least)[index]
        best.append(least.add_((chunk * chunk).sum(1)).clamp_(min=0))
        which.append(index)
    return torch.cat(which), torch.cat(best)


def _begin(
    points: Tensor, k: int, settings: KMeansConfig, generator: torch.Generator | None = None
) -> Tensor:
    """Choose the first centroids among the points: [K, D]."""
    if settings.init == "random":
        return points[torch.randperm(len(points), generator=generator)[:k].to(points.device)]
    chosen = [points[int(torch.randint(len(points), (), generator=generator))]]
    distance = torch.full_like(points[:, 0], float("inf"))
    for draw in torch.rand(k - 1, dtype=torch.float64, generator=generator).tolist():
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(1))  # [N]
        total = distance.cumsum(0, dtype=torch.float64)
        at = int(torch.searchsorted(total, total[-1] * draw, right=True))  # never a point chosen already
        chosen.append(points[min(at, len(points) - 1)])
    return torch.stack(chosen)


def _lloyd(points: Tensor, centroids: Tensor, settings: KMeansConfig, balance: Balance | None) -> Clusters:
    rough = None if balance is None else dataclasses.replace(balance, how="sinkhorn", iterations=ROUGH)
    prices = _prices(points, centroids, rough)
    assigned, distance = nearest(points, centroids, prices)
    inertia = [float(distance.mean())]
    for _ in range(settings.iterations):
        centroids = _average(points, assigned, distance, centroids)
        before, prices = assigned, _prices(points, centroids, rough, prices)
        assigned, distance = nearest(points, centroids, prices)
        inertia.append(float(distance.mean()))
        if torch.equal(assigned, before):
            break
    if balance is not None:
        prices = _prices(points, centroids, balance, prices)
        inertia.append(float(nearest(points, centroids, prices)[1].mean()))
    return Clusters(centroids, inertia, prices)


def _prices(
    points: Tensor, centroids: Tensor, balance: Balance | None, start: Tensor | None = None
) -> Tensor | None:
    """Return the clusters' prices; |x|^2 is the same for all of them and left out."""
    if balance is None:
        return None
    norms = (centroids * centroids).sum(1)
    return find_prices(torch.addmm(norms, points, centroids.T, alpha=-2), balance, start)


def _average(points: Tensor, assigned: Tensor, distance: Tensor, centroids: Tensor) -> Tensor:
    """Return the mean of each cluster's points; where there are none, the points farthest from theirs."""
    counts = torch.bincount(assigned, minlength=len(centroids))  # [K]
    sums = torch.zeros_like(centroids).index_add_(0, assigned, points)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero()[:, 0]
    means[empty] = points[distance.topk(len(empty)).indices]
    return means


def _faiss(points: Tensor, k: int, settings: KMeansConfig, generator: torch.Generator | None) -> Clusters:
    faiss = _import_faiss()
    trained = faiss.Kmeans(
        points.shape[1],
        k,
        niter=settings.iterations,
        nredo=settings.restarts,
        min_points_per_centroid=1,
        max_points_per_centroid=settings.max_points,
        seed=int(torch.randint(2**31 - 1, (), generator=generator)),
    )
    trained.train(points.float().cpu().numpy())
    centroids = torch.from_numpy(trained.centroids.copy()).to(points)
    return Clusters(centroids, [float(nearest(points, centroids)[1].mean())])


def _import_faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError:
        raise EnsuiteError(
            "k-means with backend = faiss: faiss is not installed; pip install faiss-cpu, or use torch"
        ) from None
