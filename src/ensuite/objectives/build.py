"""The one place where a name becomes a loss."""

from __future__ import annotations

from torch import Tensor

from ensuite.errors import EnsuiteError
from ensuite.objectives.base import Objective, ObjectiveConfig
from ensuite.objectives.cross_entropy import CrossEntropy
from ensuite.objectives.negatives import NegativeSampler
from ensuite.objectives.sampled import Head, Sampled, bce_loss, bpr_loss, gbce_loss, softmax_loss


def build_objective(config: ObjectiveConfig, n_items: int, counts: Tensor | None = None) -> Objective:
    """Build the loss that ``config`` names, for a catalogue of ``n_items``.

    Parameters
    ----------
    config
        The loss and its negatives.
    n_items
        V, the number of items; rows 1..V.
    counts
        How often each row 0..V occurs in the training events: [V + 1]. Needed where negatives follow
        popularity, and for ``logq`` with negatives taken from the batch.

    Raises
    ------
    EnsuiteError
        If counts are needed and missing, or do not fit the catalogue, or the catalogue is too small for the
        loss.

    Examples
    --------
    >>> import torch
    >>> objective = build_objective(ObjectiveConfig(loss="gbce", negatives=4), n_items=10)
    >>> table = torch.zeros(11, 8)
    >>> output, targets, row = torch.zeros(3, 8), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1])
    >>> objective(output, targets, lambda items: table if items is None else table[items], row) > 0
    tensor(True)
    """
    if n_items < 1:
        raise EnsuiteError(f"the catalogue holds {n_items} items: an objective needs at least one")
    if config.loss == "cross-entropy":
        return CrossEntropy(config.temperature, config.label_smoothing)
    _check(config, n_items, counts)
    sampler = NegativeSampler(
        n_items,
        config.negatives,
        config.sampler,
        config.share,
        counts=counts,
        power=config.popularity_power,
        exclude_history=config.exclude_history,
    )
    heads: dict[str, Head] = {"sampled-softmax": softmax_loss, "bce": bce_loss, "bpr": bpr_loss}
    head = heads.get(config.loss) or gbce_loss(n_items, config.negatives, config.calibration)
    return Sampled(head, sampler, config.temperature, config.logq)


def _check(config: ObjectiveConfig, n_items: int, counts: Tensor | None) -> None:
    if n_items < 2:
        raise EnsuiteError(
            f"loss {config.loss} compares items, but the catalogue holds {n_items}: it needs at least 2"
        )
    reads_counts = config.sampler == "popularity" or (config.logq and config.sampler != "uniform")
    if not reads_counts:
        return
    why = f"sampler = {config.sampler}" + (" with logq" if config.logq else "")
    if counts is None:
        raise EnsuiteError(
            f"{why} needs the training counts of the items: none were given; use sampler = uniform"
        )
    if counts.shape != (n_items + 1,):
        raise EnsuiteError(
            f"counts has shape {tuple(counts.shape)}; {n_items} items and padding make ({n_items + 1},)"
        )
    if not bool((counts[1:] > 0).any()) or bool((counts[1:] < 0).any()):
        raise EnsuiteError(f"{why} needs counts of at least 0 with one above it")
