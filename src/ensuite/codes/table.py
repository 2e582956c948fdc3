"""The table of semantic ids: which codes each item has, what made them, and the way back from codes to items.

CODES/
  card.json                level sizes, policy, provenance, checksums
  codes.parquet            a row for each item: item_id, level_0, level_1, ...
  tokeniser.safetensors    what made the codes; needed to append new items
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import polars as pl

from ensuite.codes.duplicates import place_after
from ensuite.codes.folder import read_card, write_folder
from ensuite.errors import EnsuiteError

if TYPE_CHECKING:
    from ensuite.codes.tokeniser import Tokeniser

CARD, CODES, TOKENISER = "card.json", "codes.parquet", "tokeniser.safetensors"

Policy = Literal["digit", "shared", "reassign"]
"""What is done about items with equal codes: one more level counts them, they stay equal, or all but one of
them move to the nearest codes of the last level that are free."""


@dataclass(frozen=True, eq=False)
class SemanticIdTable:
    """Codes of all items. Row 0 is padding, row i is item row i, as everywhere."""

    codes: np.ndarray  # [V + 1, L] int32; row 0 is -1
    level_sizes: tuple[int, ...]
    """Codes of level l are 0 .. level_sizes[l] - 1."""
    policy: Policy
    ordered: bool
    """Whether the order of levels means something: residual levels go from coarse to fine, parallel ones
    stand side by side."""
    item_ids: list[Any]
    """The user's keys: that of row i is ``item_ids[i - 1]``."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What made the codes: `tokeniser` (kind, settings, seed, hash), `encoder` (name, hash, ...), `vectors`
    (hash, how many were fitted on), and how many items were appended since."""

    def __post_init__(self) -> None:
        shape = (len(self.item_ids) + 1, len(self.level_sizes))
        if self.codes.shape != shape or self.codes.dtype != np.int32:
            raise ValueError(
                f"codes are int32 {list(shape)}, not {self.codes.dtype} {list(self.codes.shape)}"
            )
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy = {self.policy}: one of {', '.join(get_args(Policy))}")
        if (self.codes[0] != -1).any() or (self.codes[1:] < 0).any():
            raise ValueError("row 0 is padding and holds -1; all others hold codes from 0")
        if (self.codes[1:] >= np.asarray(self.level_sizes)).any():
            most = self.codes[1:].max(0)
            level = int((most >= np.asarray(self.level_sizes)).argmax())
            raise ValueError(f"level {level} of {self.level_sizes[level]} codes holds code {most[level]}")

    @property
    def n_items(self) -> int:
        """V, without padding."""
        return len(self.item_ids)

    @property
    def levels(self) -> int:
        """L, codes of an item."""
        return len(self.level_sizes)

    @property
    def content_levels(self) -> int:
        """Levels that the tokeniser made: all but the digit that tells duplicates apart."""
        return self.levels - (self.policy == "digit")

    @property
    def unique(self) -> bool:
        """Whether no two items have the same codes."""
        return len(self.tuples()) == self.n_items

    def tuples(self) -> np.ndarray:
        """Return the different tuples of codes in ascending order: [G, L] int32."""
        return self._groups[0]

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of each of `tuples`: rows ``rows[offsets[g]:offsets[g + 1]]``, ascending.

        Returns
        -------
        tuple
            offsets [G + 1] int64 and rows [V] int64.
        """
        return self._groups[1], self._groups[2]

    def items_of(self, codes: Sequence[int] | np.ndarray) -> list[int]:
        """Return the rows of the items that have exactly these L codes, ascending; none: an empty list.

        >>> codes = np.array([[-1, -1], [0, 1], [2, 0], [0, 1]], np.int32)
        >>> table = SemanticIdTable(codes, (3, 2), "shared", True, ["a", "b", "c"])
        >>> table.items_of([0, 1]), table.items_of([2, 1])
        ([1, 3], [])
        """
        wanted = tuple(int(code) for code in codes)
        if len(wanted) != self.levels:
            raise ValueError(f"{len(wanted)} codes, an item has {self.levels}")
        tuples, offsets, rows = self._groups
        at = bisect_left(range(len(tuples)), wanted, key=lambda g: tuple(tuples[g].tolist()))
        if at == len(tuples) or tuple(tuples[at].tolist()) != wanted:
            return []
        return rows[offsets[at] : offsets[at + 1]].tolist()

    @cached_property
    def _groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.lexsort(self.codes[1:].T[::-1])  # stable: items of a tuple stay in the order of their rows
        ordered = self.codes[1:][order]
        first = np.ones(len(order), bool)
        first[1:] = (ordered[1:] != ordered[:-1]).any(1)
        starts = np.flatnonzero(first)
        return ordered[starts], np.append(starts, len(order)).astype(np.int64), order.astype(np.int64) + 1

    def check_items(self, item_ids: Sequence[Any], where: str) -> None:
        """Refuse a table whose first rows are not the items ``item_ids`` of ``where``, in their order.

        Items that were appended to the table may follow.
        """
        ours, theirs = [str(i) for i in self.item_ids], [str(i) for i in item_ids]
        if ours[: len(theirs)] == theirs:
            return
        without = sorted(set(theirs) - set(ours))
        why = (
            f"{len(without):,} of its {len(theirs):,} items have no codes (such as {without[0]})"
            if without
            else "its items come in another order"
        )
        raise EnsuiteError(
            f"{where}: the table of codes was made for other items: {why}; build it from this dataset"
        )

    # -- new items --

    def append(
        self, item_ids: Sequence[Any], vectors: np.ndarray, tokeniser: Tokeniser, *, encoder: str
    ) -> SemanticIdTable:
        """Return a table that holds new items too, in rows after the old ones, whose codes all stay.

        Parameters
        ----------
        item_ids
            Keys of the new items.
        vectors
            Their content vectors, [N, D].
        tokeniser
            The one that made this table.
        encoder
            Hash of what made the vectors.

        Raises
        ------
        EnsuiteError
            When an item is in the table already or comes twice, tokeniser or encoder are not those of the
            table, or no code is left that would tell an item from those with the same codes.
        """
        kept, new = {str(i) for i in self.item_ids}, [str(i) for i in item_ids]
        for number, key in enumerate(new):
            if key in kept:
                raise EnsuiteError(
                    f"item {key} (row {number + 1} of {len(new):,}) has codes already: old codes stay as "
                    "they are; leave it out, or build the table anew"
                )
            kept.add(key)
        self._check_maker("tokeniser", tokeniser.hash())
        self._check_maker("encoder", encoder)
        if len(vectors) != len(new):
            raise ValueError(f"{len(vectors)} vectors for {len(new)} items")
        coded = tokeniser.encode_array(vectors)
        added = place_after(
            self.codes[1:],
            coded,
            self.policy,
            self.level_sizes,
            lambda which: tokeniser.moves(vectors[which]),
        )
        total = self.provenance.get("appended", 0) + len(new)
        return replace(
            self,
            codes=np.concatenate([self.codes, added]),
            item_ids=[*self.item_ids, *item_ids],
            provenance=self.provenance | {"appended": total},
        )

    def of_others(
        self, item_ids: Sequence[Any], vectors: np.ndarray, tokeniser: Tokeniser, *, encoder: str
    ) -> SemanticIdTable:
        """Return the codes of another catalogue, by what made these and with the same level sizes.

        Parameters and errors are those of `append`.
        """
        from ensuite.codes.build import hash_vectors

        none = replace(self, codes=self.codes[:1], item_ids=[])
        made = none.append(item_ids, vectors, tokeniser, encoder=encoder)
        kept = {key: value for key, value in self.provenance.items() if key != "appended"}
        of_these = {"vectors": {"hash": hash_vectors(vectors), "fitted_on": 0}}
        return replace(made, provenance=kept | of_these)

    def _check_maker(self, what: str, given: str) -> None:
        made_by = self.provenance.get(what, {}).get("hash")
        if made_by != given:
            raise EnsuiteError(
                f"the table was made by another {what}: its hash is {made_by}, this one's {given}; give the "
                f"{what} of the table, or build the table anew"
            )

    # -- on disk --

    def save(
        self, path: str | os.PathLike[str], tokeniser: Tokeniser | None = None, *, overwrite: bool = False
    ) -> None:
        """Write the folder ``path`` aside and rename it into place, with the tokeniser that made the codes.

        Raises
        ------
        EnsuiteError
            When something is there and is not to be overwritten or no table, or the disk is full.
        """
        if tokeniser is not None:
            self._check_maker("tokeniser", tokeniser.hash())
        frame = pl.DataFrame(
            {"item_id": self.item_ids}
            | {f"level_{level}": self.codes[1:, level] for level in range(self.levels)}
        )
        files: dict[str, Callable[[Path], Any]] = {CODES: frame.write_parquet}
        if tokeniser is not None:
            files[TOKENISER] = tokeniser.save
        card = {
            "n_items": self.n_items,
            "level_sizes": list(self.level_sizes),
            "policy": self.policy,
            "ordered": self.ordered,
            "provenance": self.provenance,
        }
        write_folder(Path(path), card, files, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SemanticIdTable:
        """Read a folder of `save`.

        Raises
        ------
        EnsuiteError
            When the folder is no table of codes, of another format version, or damaged: the file is named.
        """
        path = Path(path)
        card = read_card(path)
        try:
            frame = pl.read_parquet(path / CODES)
            levels = [f"level_{level}" for level in range(len(card["level_sizes"]))]
            codes = np.full((frame.height + 1, len(levels)), -1, np.int32)
            codes[1:] = frame.select(levels).to_numpy()
            return cls(
                codes,
                tuple(card["level_sizes"]),
                card["policy"],
                card["ordered"],
                frame["item_id"].to_list(),
                card["provenance"],
            )
        except (pl.exceptions.PolarsError, OSError, KeyError, ValueError) as error:
            raise EnsuiteError(f"{path / CODES}: damaged: {str(error).splitlines()[0]}") from None
