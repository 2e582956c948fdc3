"""RQ-VAE: an autoencoder whose inner vector is written as a sum of codes, from coarse to fine.

Lee et al., "Autoregressive image generation using residual quantization" (CVPR 2022); as codes of items in
TIGER (Rajput et al., NeurIPS 2023, arXiv:2305.05065), section 3.1.

What differs from TIGER by default, since its settings collapse on unit-length sentence vectors: inputs are
standardised, AdamW replaces Adagrad, k-means++ on many items (not the first batch) starts the codebooks, and
codes that nothing uses are put where points are. The preset `paper` has TIGER's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ensuite.codes.learning import Codebook, CodebooksConfig, learn, mlp, quantiser_loss
from ensuite.codes.tokeniser import Progress, Tokeniser
from ensuite.errors import EnsuiteError

WATCHED = 1000  # steps over which usage is counted where codes are not revived


class RQVAE(Tokeniser):
    """Encoder, decoder, and a codebook for each level."""

    Config = CodebooksConfig
    kind = "rq-vae"
    summary = "an autoencoder with residual codes, as in TIGER"
    ordered = True
    presets = {  # noqa: RUF012
        "paper": {
            "standardise": False,
            "optimizer": "adagrad",
            "lr": 0.4,
            "steps": 240_000,  # 20,000 epochs of Beauty's 12,101 items
            "start_points": 4,  # one batch of 1,024
            "revive_every": 0,
            "least_usage": 0.8,
        }
    }

    books: list[Codebook]

    def __init__(self, config: CodebooksConfig, dim: int):
        super().__init__(config, dim)
        widths = [dim, *config.hidden, config.latent]
        self.encoder, self.decoder = mlp(widths), mlp(widths[::-1])
        books = [Codebook(config.size, config.latent) for _ in range(config.levels)]
        self.books = nn.ModuleList(books)  # type: ignore[assignment]

    @property
    def level_sizes(self) -> tuple[int, ...]:
        return (self.config.size,) * self.config.levels

    def loss(self, points: Tensor) -> Tensor:
        """Return |x - x_hat|^2 + sum_l (|sg(r_l) - e_l|^2 + beta |r_l - sg(e_l)|^2), the mean over ``points``
        [N, D]: a scalar."""
        latent = self.encoder(points)
        residual, total, terms = latent, torch.zeros_like(latent), latent.new_zeros(())
        for book in self.books:
            _, vectors = book(residual)
            terms = terms + quantiser_loss(residual, vectors, self.config.beta)
            residual, total = residual - vectors.detach(), total + vectors
        through = latent + (total - latent).detach()
        return (points - self.decoder(through)).square().sum(1).mean() + terms

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        c = self.config
        self.start(vectors, generator)

        def after(step: int, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
            if not c.revive_every:
                if step % WATCHED == 0:
                    self._watch(step, len(vectors))
            elif step % c.revive_every == 0 and step <= 0.8 * c.steps:
                with torch.no_grad():
                    residual = self.encoder(self._points(vectors[rows]))
                    for book in self.books:
                        book.revive(residual, generator, optimizer)
                        residual = residual - book.vectors[book.nearest(residual)]

        learn(
            self,
            c,
            len(vectors),
            lambda rows: self.loss(self._points(vectors[rows])),
            generator,
            progress,
            after,
        )

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Put the codebooks on what k-means++ finds among the items, level by level."""
        some = torch.randperm(len(vectors), generator=generator)[
            : self.config.size * self.config.start_points
        ]
        residual = self.encoder(self._points(vectors[some.to(vectors.device)]))
        for book in self.books:
            book.begin(residual, generator)
            residual = residual - book.vectors[book.nearest(residual)]

    def _watch(self, step: int, n: int) -> None:
        """Stop a training that has collapsed while there is time to lose."""
        for level, book in enumerate(self.books):
            used = book.usage() * self.config.size
            if used < self.config.least_usage * min(self.config.size, n):
                raise EnsuiteError(
                    f"rq-vae: collapsed: level {level} used {used:.0f} of {self.config.size} codes in the "
                    f"{WATCHED:,} steps before step {step:,} (least_usage = {self.config.least_usage:g}); "
                    f"{self._remedy()}"
                )
            book.uses.zero_()

    def _remedy(self) -> str:
        return "standardise the vectors, revive codes (revive_every = 100), lower lr, or take rq-k-means"

    def _encode(self, points: Tensor) -> Tensor:
        residual, codes = self.encoder(points), []
        for book in self.books:
            code, vectors = book(residual)
            codes.append(code)
            residual = residual - vectors
        return torch.stack(codes, 1)

    def _decode(self, codes: Tensor, levels: int) -> Tensor:
        books = self.books[:levels]
        return self.decoder(torch.stack([book.vectors[codes[:, i]] for i, book in enumerate(books)]).sum(0))

    def code_vectors(self) -> list[Tensor]:
        return [book.vectors for book in self.books]

    def _moves(self, points: Tensor) -> Tensor:
        residual = self.encoder(points)
        for book in self.books[:-1]:
            residual = residual - book(residual)[1]
        return torch.cdist(residual, self.books[-1].vectors).square()
