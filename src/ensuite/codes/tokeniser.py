"""What every tokeniser is: fitted on item vectors once, it then gives the codes of any vector.

A subclass holds what it learns in parameters and buffers, so that saving is that of any module, and gives
`_fit`, `_encode` and `_decode`. Fitting is done in single precision, encoding in double: two codes whose
distances differ by a rounding error must not change places with the size of a batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ensuite.config import build_config, config, config_dict
from ensuite.errors import EnsuiteError

BLOCK = 8192  # vectors that are encoded at a time
CHECKED = 200_000  # of more fitted vectors, so many are encoded to see whether codes are in use
FORMAT_VERSION = 1

Progress = Callable[[str, int, int, float | None], None]
"""``progress(stage, done, total, loss)``: told of every step of a fit; loss None where there is none."""


@config
class TokeniserConfig:
    """What all tokenisers have in common."""

    standardise: bool = True
    """Bring every dimension of the vectors to mean 0 and variance 1 over the fitted items first."""
    least_usage: float = 0.5
    """Refuse codes of which a level uses a smaller share (of the items, where these are fewer than codes):
    the codebook has collapsed. 0 accepts any."""

    def __post_init__(self) -> None:
        if not 0 <= self.least_usage <= 1:
            raise ValueError(f"least_usage = {self.least_usage}: a share between 0 and 1")


class Tokeniser(nn.Module):
    """A map from vectors [N, D] to codes [N, L], built of a configuration and the width D."""

    Config: ClassVar[type]
    kind: ClassVar[str]
    """Its name on the command line and in files."""
    summary: ClassVar[str]
    ordered: ClassVar[bool]
    """Whether the order of its levels means something."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named settings, such as those of a paper."""
    mean: Tensor  # [D]
    scale: Tensor  # [D]

    def __init__(self, config: Any, dim: int):
        super().__init__()
        self.config, self.dim = config, dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.seed: int | None = None
        """Of the generator that `fit` was given."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """How many codes each level has."""
        raise NotImplementedError

    # -- what a subclass gives; ``points`` are standardised vectors --

    def _start(self) -> None:
        """Draw the first weights; called by `fit`, so that they too are a matter of its generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def _fit(self, vectors: Tensor, generator: torch.Generator, progress: Progress | None) -> None:
        """Learn from ``vectors`` [N, D], not standardised: `_points` does that, a part of them at a time."""
        raise NotImplementedError

    def _encode(self, points: Tensor) -> Tensor:
        """Return the codes [N, L] int64 of ``points`` [N, D]."""
        raise NotImplementedError

    def _decode(self, codes: Tensor, levels: int) -> Tensor | None:
        """Return the points [N, D] that the first ``levels`` of ``codes`` [N, L] stand for; None: codes of
        this kind stand for none."""
        raise NotImplementedError

    def code_vectors(self) -> list[Tensor] | None:
        """Return what the codes of each level stand for, each [K, d]; None: codes of this kind stand for
        nothing."""
        return None

    def _moves(self, points: Tensor) -> Tensor:
        """Return the cost of every code of the last level, the others kept: [N, K]."""
        raise NotImplementedError

    # -- what is called --

    def fit(
        self, vectors: np.ndarray | Tensor, generator: torch.Generator, progress: Progress | None = None
    ) -> Self:
        """Learn from ``vectors`` [N, D]; all random numbers come from ``generator``, on the CPU.

        Raises
        ------
        EnsuiteError
            When there are no vectors, some are not finite, or the codes collapse.
        """
        vectors = self._check(vectors)
        if not len(vectors):
            raise EnsuiteError(f"{self.kind}: no vectors to learn from")
        for start in range(0, len(vectors), BLOCK):
            wrong = (~torch.isfinite(vectors[start : start + BLOCK])).any(1).nonzero()
            if len(wrong):
                row = start + int(wrong[0])
                raise EnsuiteError(f"{self.kind}: vector {row:,} is not finite; encode the items again")
        self.seed = generator.initial_seed()
        self.to(vectors.device, torch.float32).requires_grad_(True)
        if self.config.standardise:
            self._standardise(vectors)
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)))
            self._start()
            self._fit(vectors, generator, progress)
        self.double().requires_grad_(False).eval()
        self._check_usage(vectors)
        return self

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """Return the codes of ``vectors`` [N, D], block by block: [N, L] int64."""
        vectors = self._check(vectors)
        empty = torch.empty(0, len(self.level_sizes), dtype=torch.int64, device=vectors.device)
        return torch.cat([empty, *(self._encode(self._points(block)) for block in vectors.split(BLOCK))])

    def encode_array(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes of NumPy ``vectors`` [N, D]: [N, L] int32."""
        return self.encode(torch.from_numpy(vectors).to(self.mean.device)).cpu().numpy().astype(np.int32)

    @torch.no_grad()
    def decode(self, codes: Tensor, levels: int | None = None) -> Tensor | None:
        """Return the vectors that ``codes`` [N, L], or their first ``levels``, stand for: [N, D]; None where
        codes of this kind stand for none."""
        points = self._decode(codes, len(self.level_sizes) if levels is None else levels)
        return None if points is None else points * self.scale + self.mean

    @torch.no_grad()
    def moves(self, vectors: np.ndarray) -> np.ndarray:
        """Return what it would cost each vector to have each code of the last level: [N, K] float64."""
        points = self._check(vectors).to(self.mean.device).split(BLOCK)
        blocks = [self._moves(self._points(block)) for block in points]
        return torch.cat(blocks).cpu().numpy()

    def hash(self) -> str:
        """Return what tells this tokeniser from any other: of its kind, settings and tensors."""
        digest = hashlib.sha256(json.dumps([self.kind, self.dim, config_dict(self.config)]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        about = {
            "kind": self.kind,
            "dim": self.dim,
            "config": config_dict(self.config),
            "seed": self.seed,
            "format_version": FORMAT_VERSION,
        }
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(tensors, path, metadata={"tokeniser": json.dumps(about)})

    def _standardise(self, vectors: Tensor) -> None:
        """Find mean and deviation of every dimension, block by block; a constant one is left as it is."""
        blocks, n = vectors.split(BLOCK), len(vectors)
        mean = torch.stack([block.double().sum(0) for block in blocks]).sum(0) / n
        spread = torch.stack([(block.double() - mean).square().sum(0) for block in blocks]).sum(0) / n
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(spread > 1e-24, spread.sqrt(), torch.ones_like(spread)))

    def _sample(self, vectors: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """Return the points of all vectors, or of so many drawn at random, in double precision: [n, D]."""
        self.double()
        if len(vectors) > most:
            drawn = torch.randperm(len(vectors), generator=generator)[:most].sort().values
            vectors = vectors[drawn.to(vectors.device)]
        return self._points(vectors)

    def _points(self, vectors: Tensor) -> Tensor:
        return (vectors.to(self.mean) - self.mean) / self.scale

    def _check(self, vectors: np.ndarray | Tensor) -> Tensor:
        if isinstance(vectors, np.ndarray):
            vectors = torch.from_numpy(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise EnsuiteError(
                f"{self.kind}: vectors of shape {list(vectors.shape)}, made for [N, {self.dim}]; were they "
                "made by another encoder?"
            )
        return vectors

    def _check_usage(self, vectors: Tensor) -> None:
        some = vectors[:: -(-len(vectors) // CHECKED)]
        codes = self.encode(some)
        for level, size in enumerate(self.level_sizes):
            used, possible = len(codes[:, level].unique()), min(size, len(some))
            if used < self.config.least_usage * possible:
                raise EnsuiteError(
                    f"{self.kind}: collapsed: level {level} uses {used:,} of {possible:,} possible codes "
                    f"({used / possible:.1%}; least_usage = {self.config.least_usage:g}); {self._remedy()}"
                )

    def _remedy(self) -> str:
        return "use fewer codes, or standardised vectors"


def load_tokeniser(path: Path) -> Tokeniser:
    """Read a file of `Tokeniser.save`.

    Raises
    ------
    EnsuiteError
        When it is missing, damaged, of another version, or no tokeniser.
    """
    from ensuite.codes.kinds import tokeniser_class

    if not path.exists():
        raise EnsuiteError(f"{path}: no such tokeniser; the table was saved without it")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["tokeniser"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version, kind = about["format_version"], about["kind"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise EnsuiteError(f"{path}: damaged, or no tokeniser of ensuite: {error}") from None
    if version != FORMAT_VERSION:
        raise EnsuiteError(f"{path}: tokeniser format {version}, this version reads {FORMAT_VERSION}")
    cls = tokeniser_class(kind)
    tokeniser = cls(build_config(cls.Config, about["config"], str(path)), about["dim"]).double()
    try:
        tokeniser.load_state_dict(tensors)
    except RuntimeError as error:
        raise EnsuiteError(f"{path}: does not fit the settings it was saved with: {error}") from None
    tokeniser.seed = about["seed"]
    return tokeniser.requires_grad_(False).eval()
