"""Items that came after a training, known by what they are: codes and content by what made those of the old
ones."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ensuite.content.vectors import ContentVectors, WithoutText
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model, TakesCodes
from ensuite.training.item_vectors import RUN, Listener, Source
from ensuite.training.materials import source_of
from ensuite.training.run import CODES, Run

if TYPE_CHECKING:
    import polars as pl

    from ensuite.codes.table import SemanticIdTable
    from ensuite.codes.tokeniser import Tokeniser


class Silent:
    """Who wants no news."""

    def update(self, name: str, done: int, total: int | None, loss: float | None = None) -> None: ...

    def busy(self, what: str) -> None: ...


def codes_of(run: Run, folder: Path | None = None) -> tuple[SemanticIdTable, Tokeniser]:
    """Return the table of codes that ``run`` was trained on, and what made it; ``folder`` is where it is now.

    Raises
    ------
    EnsuiteError
        When it is not there any more, holds other codes, or was made of vectors that new items do not have.
    """
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser

    assert run.config.codes is not None
    folder = folder or Path(run.config.codes.table or run.path / CODES)
    table = SemanticIdTable.load(folder)
    learned = getattr(run.model, "codes", None)
    if learned is not None and not np.array_equal(
        table.codes[1 : len(learned), : learned.shape[1]], learned[1:].cpu()
    ):
        raise EnsuiteError(
            f"{folder}: not the codes that {run.path} was trained on; name those, with the tokeniser that "
            "made them"
        )
    made = table.provenance.get("encoder", {}).get("name") or ""
    if made.startswith(RUN):
        raise EnsuiteError(
            f"{folder}: made of the item vectors of a run ({made}), which new items do not have; build codes "
            "from text to add items"
        )
    return table, load_tokeniser(folder / TOKENISER)


def append_items(
    table: SemanticIdTable,
    tokeniser: Tokeniser,
    items: pl.DataFrame,
    where: str,
    *,
    cache: Path | None = None,
    encoder: str | None = None,
    without_text: WithoutText | None = None,
    device: str = "cpu",
    working: Listener | None = None,
) -> tuple[SemanticIdTable, ContentVectors]:
    """Return ``table`` with the ``items`` of ``where`` after its own, and their content vectors.

    Raises
    ------
    EnsuiteError
        As `SemanticIdTable.append` and `Source.read`.
    """
    source = Source.remembered(
        table.provenance["encoder"], cache=cache, encoder=encoder, without_text=without_text
    )
    found = source.read(items, where, device, working or Silent(), new=True)
    longer = table.append(found.item_ids, found.vectors, tokeniser, encoder=found.source["hash"])
    return longer, found


class Describer:
    """What gives a run's model items by their descriptions: made once, asked as often as items come.

    Raises
    ------
    EnsuiteError
        When the run's system knows items one by one, or its codes are not there any more (`codes_of`).
    """

    def __init__(self, run: Run):
        if not isinstance(run.model, TakesCodes):
            raise EnsuiteError(
                f"{run.path}: a run of {run.config.name}, which knows the items it was trained on one by "
                "one; others cannot be described to it: train it again with them"
            )
        self.run = run
        self.codes: tuple[SemanticIdTable, Tokeniser] | None = None
        if "codes" in run.model.reads:
            table, tokeniser = codes_of(run)
            n = run.model.n_items
            known = dataclasses.replace(table, codes=table.codes[: n + 1], item_ids=table.item_ids[:n])
            self.codes = known, tokeniser
            self.source = Source.remembered(table.provenance["encoder"])
        else:
            assert run.config.codes is not None
            self.source = source_of(run.config.codes, run.items, str(run.path))

    def grow(self, items: pl.DataFrame, where: str, working: Listener | None = None) -> Model:
        """Return the run's model with ``items`` after its own: a table with item_id and the columns that
        describe an item.

        Raises
        ------
        EnsuiteError
            When an item is known already or comes twice, a column is missing, or an item has no text and the
            policy of the run's codes is to refuse that.
        """
        model: Any = self.run.model
        device = next(itertools.chain(model.parameters(), model.buffers())).device
        if self.codes is not None:
            table, tokeniser = self.codes
            longer, found = append_items(table, tokeniser, items, where, device=str(device), working=working)
            codes = torch.from_numpy(longer.codes[table.n_items + 1 :])
        else:
            found = self.source.read(items, where, str(device), working or Silent(), new=True)
            codes = torch.empty(len(items), 0, dtype=torch.int32)
        return model.with_codes(codes.to(device), torch.from_numpy(found.vectors).to(device))


def read_new_items(path: Path, known: list[Any]) -> pl.DataFrame:
    """Read a table of new items, their ids in the type of the ``known`` ones.

    Raises
    ------
    EnsuiteError
        When no column holds ids, or they are of another type or missing.
    """
    import polars as pl

    from ensuite.data.columns import guess
    from ensuite.data.readers import read_table, title_column

    items = title_column(read_table(str(path)))
    column = guess("item", items.columns) or ("id" if "id" in items.columns else None)
    if column is None:
        raise EnsuiteError(
            f"{path}: no column looks like the item_id; rename it (columns: {', '.join(items.columns)})"
        )
    items = items.rename({column: "item_id"})
    wanted = pl.Series(known).dtype
    try:
        items = items.with_columns(pl.col("item_id").cast(pl.String).cast(wanted))
    except pl.exceptions.PolarsError:
        raise EnsuiteError(
            f"{path}: column '{column}' does not hold ids like the table's ({wanted}, such as {known[0]!r})"
        ) from None
    if items["item_id"].null_count():
        raise EnsuiteError(f"{path}: row {items['item_id'].is_null().arg_true()[0] + 1:,} has no item_id")
    return items
