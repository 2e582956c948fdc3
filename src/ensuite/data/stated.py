"""What users say they want, beside the events of a log."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Stated:
    """The preferences that are known when an event is asked for, made of what came before it alone."""

    numbers: np.ndarray  # [E, P] int64, rows of `values`; 0: fewer, or none
    values: Tensor  # [T + 1, W], each text as the model encodes it (`Model.encode_preferences`); row 0 is 0

    def look_up(self, numbers: np.ndarray) -> Tensor:
        """Return the encoded texts ``numbers`` [B, P]: [B, P, W]."""
        return self.values[torch.from_numpy(numbers)]

    def at(self, rows: np.ndarray) -> Tensor:
        """Return what is known at the events ``rows`` [B]: [B, P, W]."""
        return self.look_up(self.numbers[rows])
