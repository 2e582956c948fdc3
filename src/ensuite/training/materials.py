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

from ensuite.content.template import render_items
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.materials import Materials
from ensuite.training.config import CodesConfig, RunConfig
from ensuite.training.item_vectors import RUN, Source, vectors_of_table
from ensuite.training.progress import Display

if TYPE_CHECKING:
    import numpy as np

    from ensuite.codes.table import SemanticIdTable
    from ensuite.codes.tokeniser import Tokeniser

CODES = "codes"
"""The folder, inside a run, of the table that was made for it."""

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
    template(config.codes, dataset)


def template(codes: CodesConfig, dataset: Dataset) -> str | None:
    """Return what describes an item of ``dataset`` in words; None when its vectors are those of a run, or of
    images alone."""
    if not codes.text and (codes.images or codes.encoder.startswith(RUN)):
        return None
    return describing(codes, dataset)


def describing(codes: CodesConfig, dataset: Dataset) -> str:
    """Return what describes an item of ``dataset`` in words."""
    if codes.text:
        return codes.text
    columns = [name for name in TEXTS if name in dataset.items.columns]
    if not columns:
        there = ", ".join(dataset.items.columns)
        raise EnsuiteError(
            f"{dataset.path}: codes are made of what items are, and no column of the item table says that "
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
    with display.stages() as news:
        found = _source(codes, dataset).read(dataset.items, str(dataset.path), str(device), news)
        learnt = found.has_content & _in_training(dataset) if codes.fit_on == "train" else found.has_content
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
        When the table of codes is damaged, or was made for other items or by another encoder.
    """
    codes = config.codes
    if codes is None:
        return Materials()
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser

    table = vectors = codebooks = None
    folder = Path(codes.table) if codes.table else out / CODES
    if "codes" in reads:
        table = SemanticIdTable.load(folder)
        table.check_items(dataset.items["item_id"].to_list(), str(folder))
    if "vectors" in reads:
        vectors = _vectors(codes, table, dataset, device, display)
    if "codebooks" in reads and (folder / TOKENISER).exists():  # a table of one's own may come without
        found = load_tokeniser(folder / TOKENISER).code_vectors()
        codebooks = None if found is None else [book.float() for book in found]
    made = Materials(codes=table, vectors=vectors, codebooks=codebooks)
    if "texts" not in reads:
        return made
    assert table is not None
    encoder = table.provenance["encoder"]
    text = encoder.get("template") or describing(codes, dataset)
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
    with display.stages() as news:
        if table is None:
            found = _source(codes, dataset).read(dataset.items, str(dataset.path), str(device), news)
        else:
            found = vectors_of_table(table, dataset.items, str(dataset.path), str(device), news)
    return F.pad(torch.from_numpy(found.vectors), (0, 0, 1, 0))


def _source(codes: CodesConfig, dataset: Dataset) -> Source:
    return Source(
        codes.encoder,
        template(codes, dataset),
        codes.without_text,
        None,
        codes.images or None,
        codes.image_encoder,
    )


def _tokeniser_settings(codes: CodesConfig) -> Any:
    from ensuite.codes.kinds import tokeniser_class
    from ensuite.config import build_config

    return build_config(tokeniser_class(codes.tokeniser).Config, codes.settings, "codes.settings")


def _in_training(dataset: Dataset) -> np.ndarray:
    """Return which items occur in the training events: [V] bool."""
    import numpy as np

    events = dataset.events("train")
    there = np.zeros(dataset.n_items + 1, bool)
    there[events.item_idx[events.rows()]] = True
    return there[1:]
