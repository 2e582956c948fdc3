"""The stage before any other: what a system must know of the items (`Model.reads`).

Codes are read from a folder of `ensuite codes build`, or made in the run's folder, RUN/codes, as that command
makes them; a run that is resumed finds them there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.content.template import as_text, render_items
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.materials import Materials
from ensuite.training.categories import categorise
from ensuite.training.config import CodesConfig, RunConfig
from ensuite.training.item_vectors import RUN, Source, vectors_of_table
from ensuite.training.progress import Display
from ensuite.training.run import CODES
from ensuite.training.users import training_view

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from ensuite.codes.table import SemanticIdTable
    from ensuite.codes.tokeniser import Tokeniser

TEXTS = ("title", "name", "brand", "categories", "genres")
"""Columns that describe an item, where no template says more."""


def makes_codes(config: RunConfig, reads: Sequence[str]) -> bool:
    """Whether a table of codes is to be made before the training."""
    return config.codes is not None and "codes" in reads and not config.codes.table


def check_codes(config: RunConfig, dataset: Dataset) -> None:
    """Refuse what cannot become a table of codes, before anything is written.

    Raises
    ------
    EnsuiteError
        For an unknown tokeniser or setting, or items that nothing describes.
    """
    assert config.codes is not None
    _tokeniser_settings(config.codes)
    template(config.codes, dataset.items, str(dataset.path))


def template(codes: CodesConfig, items: pl.DataFrame, where: str) -> str | None:
    """Return what describes an item of a table in words; None when its vectors are those of a run, or of
    images alone."""
    if not codes.text and (codes.images or codes.encoder.startswith(RUN)):
        return None
    return describing(codes, items, where)


def describing(codes: CodesConfig, items: pl.DataFrame, where: str) -> str:
    """Return what describes an item of a table in words."""
    if codes.text:
        return codes.text
    columns = [name for name in TEXTS if name in items.columns and any(map(as_text, items[name]))]
    if not columns:
        there = ", ".join(items.columns)
        raise EnsuiteError(
            f"{where}: codes are made of what items are, and no column of the item table says that "
            f"(there is {there}); prepare the dataset with a table of items that has a title, name the "
            "column by --codes.text '{COLUMN}', take the vectors of a trained run (--codes.encoder run:RUN), "
            "or give a table (--codes.table)"
        )
    return ". ".join(f"{{{name}}}" for name in columns)


def make_codes(
    config: RunConfig, dataset: Dataset, out: Path, device: torch.device | str, display: Display
) -> None:
    """Make the table of codes in the folder ``out``, unless a whole one of the same items is there."""
    from ensuite.codes.build import build_table
    from ensuite.codes.kinds import tokeniser_class
    from ensuite.codes.table import SemanticIdTable

    codes = config.codes
    assert codes is not None
    if out.exists():
        SemanticIdTable.load(out).check_items(dataset.items["item_id"].to_list(), str(out))
        return
    where = str(dataset.path)
    with display.stages() as news:
        found = source_of(codes, dataset.items, where).read(dataset.items, where, str(device), news)
        learnt = found.has_content
        if codes.fit_on == "train":
            learnt = learnt & _in_training(dataset, config)
        cls = tokeniser_class(codes.tokeniser)
        tokeniser: Tokeniser = cls(_tokeniser_settings(codes), found.vectors.shape[1])
        table = build_table(
            found.vectors,
            found.item_ids,
            tokeniser,
            encoder=found.source,
            duplicates=codes.duplicates,
            fitted_on=learnt,
            seed=config.seed,
            device=str(device),
            progress=lambda stage, done, total, loss: news.update(
                f"{codes.tokeniser}: {stage}", done, total, loss
            ),
        )
        table.save(out, tokeniser)


def gather_materials(
    config: RunConfig,
    reads: Sequence[str],
    dataset: Dataset,
    out: Path,
    device: torch.device | str,
    display: Display,
) -> Materials:
    """Return what the system of ``config`` ``reads`` of the items of ``dataset``, for the run folder ``out``.

    Raises
    ------
    EnsuiteError
        When the table of codes is damaged, or was made for other items or by another encoder, or an item
        column that is named is not there.
    """
    codes = config.codes
    if codes is None:
        return Materials()
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser

    table = vectors = codebooks = categories = None
    folder = Path(codes.table) if codes.table else out / CODES
    if "codes" in reads:
        table = SemanticIdTable.load(folder)
        table.check_items(dataset.items["item_id"].to_list(), str(folder))
    if "vectors" in reads:
        vectors = _vectors(codes, table, dataset, device, display)
    if "codebooks" in reads and (folder / TOKENISER).exists():  # a table of one's own may come without
        found = load_tokeniser(folder / TOKENISER).code_vectors()
        codebooks = None if found is None else [book.float() for book in found]
    if "categories" in reads:
        categories = categorise(
            dataset.items,
            codes.category,
            str(dataset.path),
            lambda: _vectors(codes, table, dataset, device, display) if vectors is None else vectors,
            config.seed,
        )
    made = Materials(codes=table, vectors=vectors, codebooks=codebooks, categories=categories)
    if "texts" not in reads:
        return made
    assert table is not None
    encoder = table.provenance["encoder"]
    text = encoder.get("template") or describing(codes, dataset.items, str(dataset.path))
    texts = ["", *render_items(dataset.items, text, str(dataset.path))]
    return replace(made, texts=texts, encoder=encoder)


def _vectors(
    codes: CodesConfig,
    table: SemanticIdTable | None,
    dataset: Dataset,
    device: torch.device | str,
    display: Display,
) -> Tensor:
    """Return the content vectors [V + 1, D] of the items: those that the ``table`` was made of."""
    where = str(dataset.path)
    with display.stages() as news:
        if table is None:
            found = source_of(codes, dataset.items, where).read(dataset.items, where, str(device), news)
        else:
            found = vectors_of_table(table, dataset.items, where, str(device), news)
    return F.pad(torch.from_numpy(found.vectors), (0, 0, 1, 0))


def source_of(codes: CodesConfig, items: pl.DataFrame, where: str, cache: Path | None = None) -> Source:
    """Return where the content vectors of the items of a table come from."""
    return Source(
        codes.encoder,
        template(codes, items, where),
        codes.without_text,
        cache,
        codes.images or None,
        codes.image_encoder,
    )


def _tokeniser_settings(codes: CodesConfig) -> Any:
    from ensuite.codes.kinds import tokeniser_class
    from ensuite.config import build_config

    return build_config(tokeniser_class(codes.tokeniser).Config, codes.settings, "codes.settings")


def _in_training(dataset: Dataset, config: RunConfig) -> np.ndarray:
    """Return which items occur in the training events: [V] bool."""
    import numpy as np

    events = training_view(dataset, config)
    there = np.zeros(dataset.n_items + 1, bool)
    there[events.item_idx[events.rows()]] = True
    return there[1:]
