"""A checkpoint: the counters of a run with its weights and the optimiser's state, in one file that is renamed
into place."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ensuite.models.base import Model
from ensuite.training.optimizer import load_optimizer, optimizer_tensors
from ensuite.training.run import load_weights, read_tensors, write_tensors, write_text

NAME = "last.safetensors"
NO_CHECKPOINT = "no checkpoint to resume from; start without --resume"


@dataclass
class State:
    """The counters of a run; with the weights and the optimiser's state, all that a checkpoint holds."""

    epoch: int = 0
    """The epoch in progress, from 0."""
    step: int = 0
    """Steps done in this epoch."""
    total_steps: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    bad: int = 0
    """Validations since the best."""
    seconds: float = 0.0
    """Seconds of training and validation in passing, over all sessions."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses so far."""
    spent: dict[str, float] = field(default_factory=dict)
    """This epoch's seconds by activity: batch, forward, backward, optimizer."""


def save_checkpoint(out: Path, model: Model, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write the newest checkpoint of the run folder ``out``."""
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    counters = asdict(state) | {"best": state.best if math.isfinite(state.best) else None}
    write_tensors(out / NAME, weights | optimizer_tensors(optimizer), counters)


def load_checkpoint(out: Path, model: Model, optimizer: torch.optim.Optimizer) -> State:
    """Put weights and optimiser back as they were and return the counters."""
    tensors, counters = read_tensors(out / NAME, NO_CHECKPOINT)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_weights(model, weights, out / NAME)
    load_optimizer(optimizer, tensors)
    return State(**(counters | {"best": -math.inf if counters["best"] is None else counters["best"]}))


def cut_log(log: Path, total_steps: int) -> None:
    """Drop the lines that were written after the checkpoint: they will be written again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= total_steps]
        write_text(log, "".join(line + "\n" for line in lines))
