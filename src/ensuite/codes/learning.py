"""What tokenisers with a network share: layers, codebooks that do not die, and the loop that trains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensuite.codes.tokeniser import Progress, TokeniserConfig
from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.nn.k_means import KMeansConfig, k_means, nearest


@config
class LearningConfig(TokeniserConfig):
    """How a network is trained on the items' vectors."""

    steps: int = 3000
    """Batches of training."""
    batch_size: int = 1024
    """Items of a batch, drawn without replacement until all have been seen."""
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    """AdamW, or Adagrad as in TIGER."""
    lr: float = 1e-3
    """Step size."""
    weight_decay: float = 0.0
    """AdamW's weight decay; codebooks have none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.batch_size < 1 or self.lr <= 0 or self.weight_decay < 0:
            raise ValueError("steps, batch_size and lr are positive, weight_decay is at least 0")


@config
class CodebooksConfig(LearningConfig):
    """An autoencoder whose inner vectors become codes: widths, codebooks and what keeps them alive."""

    levels: int = 3
    """Codes of an item."""
    size: int = 256
    """Codes of each level."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths of the encoder's hidden layers; the decoder mirrors them."""
    latent: int = 32
    """Width of the inner vector."""
    beta: float = 0.25
    """Weight of the commitment term."""
    start_points: int = 64
    """Items for each code on which k-means++ starts the codebooks."""
    revive_every: int = 100
    """Steps after which unused codes are put on points of the batch; never in the last fifth. 0 = never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("levels", "size", "latent", "start_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.beta < 0 or self.revive_every < 0 or any(width < 1 for width in self.hidden):
            raise ValueError("beta and revive_every are at least 0, hidden widths at least 1")


class Codebook(nn.Module):
    """K vectors, of which every point takes the nearest."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(size, dim))  # [K, d]
        self.register_buffer("uses", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.uses: Tensor  # [K], counted since the last `revive`

    @torch.no_grad()
    def begin(self, points: Tensor, generator: torch.Generator) -> None:
        """Start at the clusters that k-means++ finds among ``points`` [N, d]."""
        settings = KMeansConfig(init="k-means++", restarts=1, iterations=20)
        found = k_means(points, len(self.vectors), settings, generator=generator)
        self.vectors.copy_(found.centroids)

    def nearest(self, points: Tensor) -> Tensor:
        """Return the codes [N] of ``points`` [N, d]."""
        return nearest(points.detach(), self.vectors.detach())[0]

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes [N] and their vectors [N, d]; in training, count them."""
        codes = self.nearest(points)
        if self.training:
            self.uses += torch.bincount(codes, minlength=len(self.uses))
        return codes, self.vectors[codes]

    def usage(self) -> float:
        """Return the share of the codes in use since the last `revive`."""
        return float((self.uses > 0).float().mean())

    @torch.no_grad()
    def revive(self, points: Tensor, generator: torch.Generator, optimizer: torch.optim.Optimizer) -> None:
        """Put each code that nothing used on one of ``points`` [N, d], with no memory of the optimiser's."""
        dead = (self.uses == 0).nonzero()[:, 0]
        self.uses.zero_()
        drawn = torch.randint(len(points), (len(dead),), generator=generator).to(points.device)
        self.vectors[dead] = points[drawn]
        for value in optimizer.state[self.vectors].values():
            if value.shape == self.vectors.shape:
                value[dead] = 0


def quantiser_loss(points: Tensor, vectors: Tensor, beta: float) -> Tensor:
    """Return |sg(r) - e|^2 + beta |r - sg(e)|^2, the mean over points [N, d]: a scalar."""
    codebook = (points.detach() - vectors).square().sum(1)
    commitment = (points - vectors.detach()).square().sum(1)
    return (codebook + beta * commitment).mean()


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for i, (into, out) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(into, out)]
    return nn.Sequential(*layers)


def draw_batches(n: int, size: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Return ``steps`` batches of rows, every row once before any comes again."""
    size = min(size, n)
    passes = -(-steps * size // n)
    rows = torch.cat([torch.randperm(n, generator=generator) for _ in range(passes)])
    return list(rows[: steps * size].split(size))


def learn(
    module: nn.Module,
    settings: LearningConfig,
    n: int,
    loss: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    progress: Progress | None,
    after: Callable[[int, Tensor, torch.optim.Optimizer], None] | None = None,
) -> None:
    """Minimise ``loss(rows)`` over ``n`` items; ``after(step, rows, optimizer)`` follows each step.

    Raises
    ------
    EnsuiteError
        When the loss is not finite.
    """
    books = [m.vectors for m in module.modules() if isinstance(m, Codebook)]
    others = [p for p in module.parameters() if not any(p is book for book in books)]
    groups: list[Any] = [{"params": others}, {"params": books, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    else:
        optimizer = torch.optim.Adagrad(groups, lr=settings.lr)
    module.train()
    for step, rows in enumerate(draw_batches(n, settings.batch_size, settings.steps, generator), 1):
        value = loss(rows)
        if not bool(torch.isfinite(value)):
            raise EnsuiteError(f"the loss of step {step} is not finite; lower lr ({settings.lr:g})")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if after is not None:
            after(step, rows, optimizer)
        if progress is not None:
            progress("steps", step, settings.steps, float(value.detach()))
    module.eval()
