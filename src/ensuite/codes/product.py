"""Product quantisation of item vectors: each is cut into a few parts, and each part becomes the nearest of a
few hundred sub-items.

Jégou, Douze, Schmid, "Product quantization for nearest neighbor search" (TPAMI 2011); as codes of items in
Petrov and Macdonald, "RecJPQ" (WSDM 2024), where the model is trained with them. Here they are found after
training, by k-means over the vectors of any retriever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.nn.k_means import KMeansConfig, k_means, nearest

MOST_SUB_ITEMS = 256
"""A code is one byte."""


@config
class ProductConfig:
    """How item vectors become codes."""

    splits: int = 8
    """Parts of a vector, so bytes of an item's code; more are nearer to the vectors and slower. It must
    divide the vectors' dimension."""
    sub_items: int = MOST_SUB_ITEMS
    """Sub-items that each part chooses from; fewer when the catalogue has fewer items."""
    iterations: int = 20
    """Rounds of k-means."""
    points: int = 256
    """Most items for each sub-item that k-means reads: of more, a random share."""
    seed: int = 0
    """Seed of the first sub-items, and of that share."""

    def __post_init__(self) -> None:
        for name in ("splits", "iterations", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if not 1 <= self.sub_items <= MOST_SUB_ITEMS:
            raise ValueError(f"sub_items = {self.sub_items}: 1 to {MOST_SUB_ITEMS} (a code is one byte)")


@dataclass(frozen=True)
class ProductCodes:
    """A quantised table of V items: M bytes each, and the vectors that the bytes stand for."""

    codes: Tensor  # [V, M] uint8; row i is item row i + 1
    sub_vectors: Tensor  # [M, K, D / M] float32

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.sub_vectors.ndim != 3 or not len(self.codes):
            raise ValueError("codes are [V, M] and sub-item vectors [M, K, D / M]")
        if self.codes.shape[1] != len(self.sub_vectors) or self.codes.dtype != torch.uint8:
            raise ValueError("codes are one byte for each split")
        if int(self.codes.max()) >= self.sub_vectors.shape[1]:
            raise ValueError(f"code {int(self.codes.max())} of {self.sub_vectors.shape[1]} sub-items")

    @property
    def n_items(self) -> int:
        """V, without padding."""
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D, the dimension of the vectors."""
        return self.sub_vectors.shape[0] * self.sub_vectors.shape[2]

    def score_sub_items(self, user: Tensor) -> Tensor:
        """Return the dot product of each part of a user's vector [D] with each of its sub-items: [M, K]."""
        splits, _, width = self.sub_vectors.shape
        return torch.bmm(self.sub_vectors, user.reshape(splits, width, 1))[:, :, 0]

    def reconstruct(self) -> Tensor:
        """Return the vectors that the codes stand for: [V, D].

        >>> codes = torch.tensor([[1, 0]], dtype=torch.uint8)
        >>> ProductCodes(codes, torch.tensor([[[1.0], [2.0]], [[1.0], [2.0]]])).reconstruct()
        tensor([[2., 1.]])
        """
        parts = [F.embedding(code.long(), table) for code, table in zip(self.codes.T, self.sub_vectors)]
        return torch.cat(parts, 1)


@torch.no_grad()
def quantise(
    vectors: Tensor,
    settings: ProductConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ProductCodes:
    """Find codes for the item vectors ``vectors`` [V, D] (without padding's).

    ``progress`` is called with (splits done, splits in all). One part of all vectors is copied at a time.

    Raises
    ------
    EnsuiteError
        When the splits do not divide D, or a vector is not finite.
    """
    settings = settings or ProductConfig()
    splits, dim = settings.splits, vectors.shape[1]
    if dim % splits:
        raise EnsuiteError(
            f"splits = {splits} does not divide the {dim} dimensions of the item vectors; "
            f"{_nearest_splits(splits, dim)}"
        )
    means = KMeansConfig(iterations=settings.iterations, restarts=1, max_points=settings.points)
    codes, sub_vectors = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for done, part in enumerate(vectors.tensor_split(splits, dim=1), 1):
            points = part.float().contiguous()
            found = k_means(points, min(settings.sub_items, len(points)), means).centroids  # [K, D / M]
            codes.append(nearest(points, found)[0].to(torch.uint8).cpu())
            sub_vectors.append(found.cpu())
            if progress is not None:
                progress(done, splits)
    return ProductCodes(torch.stack(codes, 1), torch.stack(sub_vectors))


def _nearest_splits(splits: int, dim: int) -> str:
    """Say which numbers of splits next to ``splits`` would do.

    >>> _nearest_splits(5, 64), _nearest_splits(100, 64)
    ('the nearest that do are 4 and 8', 'the nearest that does is 64')
    """
    fit = [number for number in range(1, dim + 1) if dim % number == 0]
    near = [number for number in fit if number < splits][-1:] + [number for number in fit if number > splits][
        :1
    ]
    return f"the nearest that {'do are' if len(near) > 1 else 'does is'} {' and '.join(map(str, near))}"
