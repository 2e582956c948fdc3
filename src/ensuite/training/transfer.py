"""A trained run becomes a run on another dataset, its weights unchanged: zero-shot.

It takes a system to which items are nothing but codes and content: no weight of it belongs to an item. The
items of the new dataset are encoded by the encoder and the tokeniser of the old ones.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from ensuite.content.vectors import WithoutText
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.generator import Generator
from ensuite.models.materials import Materials
from ensuite.training.config import CodesConfig
from ensuite.training.item_vectors import Source
from ensuite.training.materials import template
from ensuite.training.new_items import codes_of
from ensuite.training.progress import Display
from ensuite.training.run import CODES, Run, build_card, claim, load_run, write_tensors

READS = frozenset({"codes", "vectors", "codebooks"})
"""What can be made for items that a system has never seen."""


def transfer(
    source: str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    text: str | None = None,
    images: str | None = None,
    without_text: WithoutText | None = None,
    encoder: str | None = None,
    table: str | os.PathLike[str] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
) -> Run:
    """Write the run ``source`` as a run on the dataset ``data``, of which no event is read.

    Parameters
    ----------
    source
        A run of a generator.
    data
        A dataset or its folder, whose items have texts.
    out
        The run folder to write: it is evaluated, compared and served like any other. To train it on, start
        another run from it (`--from`).
    text
        What describes an item there; by default those of title, name, brand, categories, genres that it has.
    images
        Path of an item's image there, where the codes are made of images; by default as in ``source``.
    without_text
        Items without any text; by default as the codes of ``source`` were made.
    encoder, table
        Where the encoder, and the table of codes of ``source``, are now, if they have moved; others are
        refused.
    cache
        Folder of known vectors.
    overwrite
        Replace a run in ``out``.

    Raises
    ------
    EnsuiteError
        When the system cannot be carried over, its codes were made by another encoder or tokeniser or of what
        new items do not have, or nothing describes the items.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    where = str(dataset.path)
    source, out = Path(source), Path(out)
    run = load_run(source)
    model = _able(run)
    old, tokeniser = codes_of(run, None if table is None else Path(table))
    made = old.provenance["encoder"]
    known = Source.remembered(made, cache=cache, encoder=encoder, without_text=without_text)
    if text is None and known.text is not None:
        text = template(CodesConfig(), dataset.items, where)
    described = dataclasses.replace(known, text=text, images=images or known.images)
    with Display(progress).stages() as news:
        found = described.read(dataset.items, where, device, news)
    new = old.of_others(found.item_ids, found.vectors, tokeniser, encoder=found.source["hash"])
    new = dataclasses.replace(new, provenance=new.provenance | {"encoder": found.source})
    books = tokeniser.code_vectors()
    materials = Materials(
        codes=new,
        vectors=F.pad(torch.from_numpy(found.vectors), (0, 0, 1, 0)),
        codebooks=None if books is None else [book.float() for book in books],
    )
    carried = _carry(run, model, dataset, materials)
    assert run.config.codes is not None
    codes = dataclasses.replace(
        run.config.codes,
        table="",
        text=described.text or "",
        encoder=described.encoder,
        images=described.images or "",
        image_encoder=described.image_encoder,
        without_text=described.without_text,
    )
    config = dataclasses.replace(run.config, codes=codes)
    before = run.card["data"]
    card: dict[str, Any] = build_card(carried, config, dataset) | {
        "transfer": {
            "run": str(source.resolve()),
            "data": {key: before.get(key) for key in ("name", "path", "fingerprint")},
            "encoder": found.source["hash"],
            "tokeniser": tokeniser.hash(),
        },
        "training": {"ended": "carried over; no event of this data was read"},
        **{key: run.card.get(key) for key in ("train_seconds", "peak_memory_bytes")},
    }
    card["protocol"]["selection"] = f"weights of {source.name}"
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        aside.mkdir(parents=True)
        (aside / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        (aside / "card.json").write_text(json.dumps(card, indent=2, default=str) + "\n")
        shutil.copyfile(dataset.path / "items.parquet", aside / "items.parquet")
        write_tensors(aside / "model.safetensors", carried.state_dict(), {"epoch": 0})
        new.save(aside / CODES, tokeniser)
        claim(out, overwrite)
        os.replace(aside, out)
    except OSError as error:
        raise EnsuiteError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return load_run(out)


def _able(run: Run) -> Generator:
    """Return the run's model when it can be carried over."""
    name = run.config.name
    if not isinstance(run.model, Generator):
        raise EnsuiteError(
            f"{run.path}: a run of {name}, which knows the items of its own dataset one by one; only systems "
            "that know items by their codes can be carried over (such as recgpt)"
        )
    others = sorted(set(run.model.reads) - READS)
    if others:
        raise EnsuiteError(
            f"{run.path}: a run of {name}, which also reads {', '.join(others)}: that cannot be made for new "
            "items"
        )
    return run.model


def _carry(run: Run, model: Generator, dataset: Dataset, materials: Materials) -> Generator:
    """Return the model for the items of ``dataset``, with the weights of ``model``."""
    carried = type(model)(run.config.model, dataset.n_items)
    try:
        carried.load_state_dict(model.state_dict())
    except RuntimeError:
        raise EnsuiteError(
            f"{run.path}: a run of {run.config.name}, some of whose weights belong to the items of its own "
            "dataset; it cannot be carried over"
        ) from None
    carried.take(materials)
    events = dataset.events("train")
    carried.fit(dataclasses.replace(events, ends=events.offsets))  # no event: all items are cold
    return carried.eval()
