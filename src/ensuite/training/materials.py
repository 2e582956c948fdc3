"""The stage before any other: what a system must know of the items (`Model.reads`)."""

from __future__ import annotations

from pathlib import Path

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.materials import Materials
from ensuite.training.config import RunConfig


def gather_materials(config: RunConfig, dataset: Dataset, out: Path) -> Materials:
    """Return what the system of ``config`` reads of the items of ``dataset``.

    Raises
    ------
    EnsuiteError
        When there is no table of codes, or it was made for other items.
    """
    if config.codes is None:
        return Materials()
    from ensuite.codes.table import SemanticIdTable

    if not config.codes.table:
        raise EnsuiteError(
            f"{config.name} writes codes of items, and no table of them was given; make one with `ensuite "
            "codes build` and name it with --codes.table"
        )
    table = SemanticIdTable.load(config.codes.table)
    table.check_items(dataset.items["item_id"].to_list(), config.codes.table)
    return Materials(codes=table)
