"""What an objective is, and its configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from ensuite.config import config

ItemVectors = Callable[[Tensor | None], Tensor]
"""``vectors(None)`` gives the vectors of all rows 0..V, [V + 1, D]; ``vectors(items)`` those of rows
``items``, [..., D]."""


class Objective(Protocol):
    """Maps outputs to a scalar loss, the mean over the T positions that have a target."""

    def __call__(self, output: Tensor, targets: Tensor, vectors: ItemVectors, row: Tensor) -> Tensor:
        """Compute the loss.

        Parameters
        ----------
        output
            Encoder output at the positions that have a target: [T, D].
        targets
            The item rows to predict, 1..V: [T] int64.
        vectors
            Gives item vectors, already normalised when the model's similarity is the cosine.
        row
            Which sequence of the batch each position is of, ascending: [T] int64 (for negatives shared by a
            sequence).
        """
        ...


@config
class ObjectiveConfig:
    """The loss and its negatives."""

    loss: Literal["cross-entropy", "sampled-softmax", "bce", "gbce", "bpr"] = "cross-entropy"
    """cross-entropy is over the whole catalogue, exact, in chunks; the others draw negatives."""
    temperature: float = 1.0
    """Scores are divided by it before the loss (0.05 is usual with cosine similarity)."""
    label_smoothing: float = 0.0
    """Cross-entropy: share of the target's probability given to all items alike."""
    negatives: int = 1
    """Negatives drawn: for each position, sequence or batch, as `share` says."""
    sampler: Literal["uniform", "popularity", "in-batch", "mixed"] = "uniform"
    """Where negatives come from; mixed = half in-batch, half uniform."""
    share: Literal["position", "sequence", "batch"] = "position"
    """Who shares a draw of negatives."""
    popularity_power: float = 1.0
    """Popularity sampler: draw in proportion to count ** power."""
    logq: bool = False
    """Sampled softmax: subtract the log of the expected number of draws (corrected form: not from the
    positive)."""
    calibration: float = 0.75
    """gBCE: t, 0 = plain BCE, 1 = fully calibrated (gSASRec, equation 12)."""
    exclude_history: bool = False
    """Draw no negative that occurs among the sequence's own targets (SASRec's released sampler)."""

    def __post_init__(self) -> None:
        def need(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(message)

        need(
            self.temperature > 0,
            f"temperature = {self.temperature}: it divides the scores, so it must be above 0",
        )
        need(0 <= self.label_smoothing < 1, f"label_smoothing = {self.label_smoothing}: a share in [0, 1)")
        need(self.negatives >= 1, f"negatives = {self.negatives}: at least 1")
        need(0 <= self.calibration <= 1, f"calibration = {self.calibration}: between 0 and 1")
        need(self.popularity_power >= 0, f"popularity_power = {self.popularity_power}: at least 0")
        need(
            not self.label_smoothing or self.loss == "cross-entropy",
            f"label_smoothing belongs to loss = cross-entropy, not to {self.loss}",
        )
        need(
            not self.logq or self.loss == "sampled-softmax",
            f"logq belongs to loss = sampled-softmax, not to {self.loss}",
        )
        need(
            not (self.logq and self.exclude_history),
            "logq with exclude_history: an item that is never drawn has no log-probability; "
            "set one of them to false",
        )
        need(
            not (self.exclude_history and self.share == "batch"),
            "exclude_history with share = batch: negatives shared by all sequences cannot avoid "
            "each one's history; "
            "use share = sequence or position",
        )
