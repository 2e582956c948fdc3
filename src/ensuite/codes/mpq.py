"""Parallel codes by experts: each encodes the vector in its own way and has its own codebook.

The tokeniser of REG4Rec (arXiv:2508.15308): M expert encoders with a codebook each, a router that weighs
their codes, one decoder of the weighted sum. The paper gives neither the quantiser's loss nor the formula of
its orthogonality: the first is that of the RQ-VAE, the second a choice (`orthogonal`), of which `parameters`
is MMQ's (arXiv:2508.15281). A reconstruction, then, not a reproduction.

For vectors of two kinds side by side, a text's and an image's, it has MMQ's division of labour (`split`):
experts that read both, and experts of either part alone. The weights of all come from one router.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.codes.learning import Codebook, CodebooksConfig, learn, mlp, quantiser_loss
from ensuite.codes.tokeniser import Progress, Tokeniser
from ensuite.config import config
from ensuite.errors import EnsuiteError


@config
class MPQConfig(CodebooksConfig):
    """Experts, their codebooks, and what keeps them apart."""

    levels: int = 4
    """Experts M, codes of an item (8 in benchmarks); each has a codebook, and hidden layers of its own."""
    orthogonal: Literal["outputs", "parameters", "none"] = "outputs"
    """Push apart what the experts give for an item (squared cosine), or their weights (MMQ)."""
    orthogonal_weight: float = 1.0
    """Weight of that term, beside a reconstruction error of one for each dimension."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Which code is nearest; cosine: experts' outputs and codes have length 1."""
    split: int = 0
    """Vectors of two kinds side by side: how wide the first is (of MiniLM's texts: 384). 0 = of one kind."""
    specific: int = 1
    """With `split`: experts that read one part alone, of each part; the others read both."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split < 0 or self.specific < 1:
            raise ValueError("split is at least 0, specific at least 1")
        if self.split and 2 * self.specific >= self.levels:
            raise ValueError(
                f"specific = {self.specific} of each part leaves none of {self.levels} levels for experts "
                "that read both; give more levels"
            )
        if self.orthogonal_weight < 0:
            raise ValueError("orthogonal_weight is at least 0")


class MPQ(Tokeniser):
    """Experts, router, codebooks, decoder."""

    Config = MPQConfig
    kind = "mpq"
    summary = "parallel codes by a mixture of experts, as in REG4Rec"
    ordered = False

    books: list[Codebook]

    def __init__(self, config: MPQConfig, dim: int):
        super().__init__(config, dim)
        if config.split >= dim:
            raise EnsuiteError(
                f"mpq: split = {config.split} leaves nothing of {dim} dimensions for a second part"
            )
        alone = config.specific if config.split else 0
        shared = [(0, dim)] * (config.levels - 2 * alone)
        self.reads = [*shared, *[(0, config.split)] * alone, *[(config.split, dim)] * alone]
        widths = [dim, *config.hidden, config.latent]
        self.experts = nn.ModuleList(mlp([end - first, *widths[1:]]) for first, end in self.reads)
        books = [Codebook(config.size, config.latent) for _ in range(config.levels)]
        self.books = nn.ModuleList(books)  # type: ignore[assignment]
        self.router = nn.Linear(dim, config.levels)
        self.decoder = mlp(widths[::-1])

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (self.config.size,) * self.config.levels

    def outputs(self, points: Tensor) -> Tensor:
        """Return what each expert makes of ``points`` [N, D]: [M, N, d]."""
        parts = (points[:, first:end] for first, end in self.reads)
        return self._scaled(torch.stack([expert(part) for expert, part in zip(self.experts, parts)]))

    def loss(self, points: Tensor) -> Tensor:
        """Return |v - Dec(q)|^2 + sum_r (|sg(e_r) - z_r|^2 + beta |e_r - sg(z_r)|^2) + lambda L_orthogonal,
        the mean over ``points`` [N, D]: a scalar."""
        outputs, gates = self.outputs(points), self.router(points).softmax(1)  # [M, N, d], [N, M]
        through, terms = [], points.new_zeros(())
        for output, book in zip(outputs, self.books):
            vectors = self._scaled(book(output)[1])
            terms = terms + quantiser_loss(output, vectors, self.config.beta)
            through.append(output + (vectors - output).detach())
        mixed = torch.einsum("nm,mnd->nd", gates, torch.stack(through))
        rebuilt = (points - self.decoder(mixed)).square().sum(1).mean()
        return rebuilt + terms + self.config.orthogonal_weight * self.orthogonality(outputs)

    def orthogonality(self, outputs: Tensor) -> Tensor:
        """Return how far the experts are from orthogonal: a scalar, 0 where they are."""
        if self.config.orthogonal == "none" or self.config.levels == 1:
            return outputs.new_zeros(())
        if self.config.orthogonal == "parameters":
            flat = [torch.cat([p.flatten() for p in expert.parameters()]) for expert in self.experts]
            total = outputs.new_zeros(())
            for part in set(self.reads):  # those that read the same
                alike = torch.stack([x for x, read in zip(flat, self.reads) if read == part])
                unit = F.normalize(alike, dim=1)  # [m, P]
                total = total + (unit @ unit.T - torch.eye(len(unit), device=unit.device)).square().sum()
            return total
        unit = F.normalize(outputs, dim=2)
        cosines = torch.einsum("rnd,snd->nrs", unit, unit).square()  # [N, M, M]
        return (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)).mean()

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        c = self.config
        some = torch.randperm(len(vectors), generator=generator)[: c.size * c.start_points]
        with torch.no_grad():
            outputs = self.outputs(self._points(vectors[some.to(vectors.device)]))
            for output, book in zip(outputs, self.books):
                book.begin(output, generator)

        def after(step: int, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
            if c.revive_every and step % c.revive_every == 0 and step <= 0.8 * c.steps:
                with torch.no_grad():
                    for output, book in zip(self.outputs(self._points(vectors[rows])), self.books):
                        book.revive(output, generator, optimizer)

        learn(
            self,
            c,
            len(vectors),
            lambda rows: self.loss(self._points(vectors[rows])),
            generator,
            progress,
            after,
        )
        with torch.no_grad():
            for book in self.books:
                book.vectors.copy_(self._scaled(book.vectors))

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.config.distance == "cosine" else vectors

    def _encode(self, points: Tensor) -> Tensor:
        return torch.stack([book(e)[0] for book, e in zip(self.books, self.outputs(points))], 1)

    def _decode(self, codes: Tensor, levels: int) -> Tensor:
        """The router reads the vector itself, which codes do not hold: every code weighs the same here."""
        vectors = [book.vectors[codes[:, i]] for i, book in enumerate(self.books)][:levels]
        return self.decoder(torch.stack(vectors).mean(0))

    def code_vectors(self) -> list[Tensor]:
        return [book.vectors for book in self.books]

    def _moves(self, points: Tensor) -> Tensor:
        first, end = self.reads[-1]
        last = self._scaled(self.experts[-1](points[:, first:end]))
        return torch.cdist(last, self.books[-1].vectors).square()
