"""What a system may know of the items beside their numbers; gathered by the training, handed to the model
once, before it is built and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ensuite.codes.table import SemanticIdTable


@dataclass(frozen=True)
class Materials:
    """Each field is there when `Model.reads` names it."""

    codes: SemanticIdTable | None = None
    """The codes of the dataset's items; rows of items that were appended to the table may follow."""
    vectors: Tensor | None = None  # [V + 1, D] float32, row 0 is 0
    """The content vectors of the items: those that their codes were made of."""
    codebooks: list[Tensor] | None = None  # of each level that the tokeniser made, [K, d] float32
    """What each code stands for; none where codes stand for nothing (LSH, random codes)."""
    categories: Tensor | None = None  # [V + 1] int64, row 0 is -1
    """The category of each item, from 0 without gaps: that of a column, or a cluster of the vectors."""
    texts: list[str] | None = None  # [V + 1], the first is empty
    """What describes each item: the texts that the vectors were made of."""
    encoder: Mapping[str, Any] | None = None
    """With texts: the `name` and the `hash` of the encoder that made vectors of them."""
