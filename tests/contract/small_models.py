"""Every registered model, built small on a small made-up log: what the contract tests run on."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from content.small_encoder import write_encoder

from ensuite.codes.table import SemanticIdTable
from ensuite.data.batches import Batch, History, read_history
from ensuite.data.dataset import Dataset, Events, Split, write_dataset
from ensuite.data.samples import Samples
from ensuite.errors import EnsuiteError
from ensuite.models.base import FittedModel, Model
from ensuite.models.materials import Materials
from ensuite.models.registry import load_model
from ensuite.objectives import build_objective
from ensuite.training.config import RunConfig, resolve
from ensuite.training.loop import train

N_ITEMS, N_USERS = 50, 40
ITEM_IDS = [f"i{n:02}" for n in range(1, N_ITEMS + 1)]
WORDS = (
    ["soap", "red", "blue", "hair", "nail", "oil", "brush"],
    ["for", "the", "of", "cream", "a", "b", "c", "d"],
)
TITLES = [f"{a} {b}" for a in WORDS[0] for b in WORDS[1]]
SMALL = {
    "dim": 16,
    "heads": 2,
    "blocks": 2,
    "inner": 24,
    "dim_qk": 8,
    "dim_v": 8,
    "max_length": 12,
    "dropout": 0.1,
    "head_dim": 8,
    "level_sizes": (6, 5, 4, 3),
    "text_dim": 16,
    "n_categories": 5,
    "code_dim": 16,
    "content_dim": 16,
}
"""Values for fields of these names; a model's other fields keep their defaults."""


def small_config(name: str, **samples: str) -> tuple[type[Model], RunConfig]:
    """Resolve a model's configuration as the trainer does, with small sizes."""
    values = small_values(load_model(name).config_for({}))
    return resolve(name, {"model": values, "samples": samples} if samples else {"model": values})


def small_values(cls: type) -> dict[str, object]:
    """Return the small sizes for the fields of ``cls``, and for those of a wrapper's own base."""
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    values: dict[str, object] = {key: value for key, value in SMALL.items() if key in fields}
    if dataclasses.is_dataclass(fields.get("encoder")):
        values["encoder"] = small_values(fields["encoder"])
    return values


@cache
def made_up_log(seed: int = 0) -> Events:
    """Users of 3 to 20 events among 50 items, with ties in time; those of one time are a session."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 21, N_USERS)
    ends = lengths.cumsum()
    items = rng.integers(1, N_ITEMS + 1, ends[-1]).astype(np.int32)
    time = 1_600_000_000 + np.concatenate([rng.integers(0, 3, n).cumsum() * 40_000 for n in lengths])
    session = np.concatenate([np.unique(part, return_inverse=True)[1] for part in np.split(time, ends[:-1])])
    return Events(ends - lengths, ends, items, time, 1.0, N_ITEMS, session)


def made_up_dataset(path: Path, **columns: Sequence[str]) -> Dataset:
    """The same log as a dataset folder, split leave-one-out; ``columns`` of the items beside their ids."""
    events = made_up_log()
    lengths = events.lengths
    return write_dataset(
        path,
        offsets=np.concatenate([events.offsets, events.ends[-1:]]),
        item_idx=events.item_idx,
        time=events.time,
        split=Split(lengths - 2, lengths - 1, lengths),
        items=pl.DataFrame({"item_id": ITEM_IDS, "words": TITLES[:N_ITEMS]} | columns),
        users=pl.DataFrame({"user_id": np.arange(N_USERS)}),
        columns={"session": events.session},
        card={"time_unit": "s", "split": {"kind": "leave-one-out", "targets": "next"}},
    )


def small_materials(config: RunConfig) -> Materials:
    """Return what a model reads of the 50 items: codes drawn at random, no two items alike, and vectors of
    16 numbers for items and codes that have nothing to do with them."""
    if config.codes is None:
        return Materials()
    reads, rng = load_model(config.name).reads, np.random.default_rng(0)
    table = books = None
    if "codes" in reads:
        sizes = config.model.level_sizes
        drawn = rng.choice(math.prod(sizes), N_ITEMS, replace=False)
        codes = np.full((N_ITEMS + 1, len(sizes)), -1, np.int32)
        codes[1:] = np.stack(np.unravel_index(drawn, sizes), 1)
        table = SemanticIdTable(codes, sizes, "shared", True, ITEM_IDS)
        books = [torch.from_numpy(rng.normal(size=(size, 16))).float() for size in sizes]
    vectors = torch.from_numpy(rng.normal(size=(N_ITEMS + 1, 16))).float()
    vectors[0] = 0
    return Materials(
        codes=table,
        vectors=vectors if "vectors" in reads else None,
        codebooks=books if "codebooks" in reads else None,
        texts=["", *TITLES[:N_ITEMS]] if "texts" in reads else None,
        encoder={"name": "made up", "hash": "of nothing"} if "texts" in reads else None,
        categories=torch.tensor([-1, *(n % 5 for n in range(N_ITEMS))]) if "categories" in reads else None,
    )


def materials_section(config: RunConfig, path: Path) -> dict[str, dict[str, str]]:
    """Write what a model reads of the items below ``path``, and return the sections of a recipe that name it:
    what `small_materials` gives, or for a model that reads vectors, codes of those of a trained run; for one
    that reads texts, codes of theirs by a small encoder."""
    if config.codes is None:
        return {}
    if "texts" in load_model(config.name).reads:
        encoder = write_encoder(path / "encoder", pooling="mean")
        codes = {"encoder": str(encoder), "text": "{words}", "settings": {"levels": 2, "size": 6}}
        wishes = [{"user_id": n, "step": 1, "preferences": [f"find {TITLES[n]}"]} for n in range(N_USERS)]
        (path / "wishes.jsonl").write_text("\n".join(map(json.dumps, wishes)))
        return {"codes": codes, "preferences": {"file": str(path / "wishes.jsonl")}}
    if {"vectors", "categories"} & set(load_model(config.name).reads):
        made = {"tokeniser": "rq-k-means", "settings": {"levels": 2, "size": 6}}
        return {"codes": {"encoder": f"run:{_trained()}"} | made}
    table = small_materials(config).codes
    assert table is not None
    table.save(path / "codes")
    return {"codes": {"table": str(path / "codes")}}


@cache
def _trained() -> Path:
    """Return a run of SASRec on the made-up log, whose item vectors describe its items."""
    folder = Path(tempfile.mkdtemp())
    train("sasrec", made_up_dataset(folder / "data"), folder / "run", recipe={"training": {"epochs": 1}})
    return folder / "run"


def build_model(name: str, *, seed: int = 0, with_objective: bool = True) -> Model:
    """Build the model, fitted when it is counted, else with fresh weights and its default objective."""
    cls, config = small_config(name)
    torch.manual_seed(seed)
    if issubclass(cls, FittedModel):
        model: Model = cls(config.model, N_ITEMS)
    else:
        counts = torch.from_numpy(np.bincount(made_up_log().item_idx, minlength=N_ITEMS + 1))
        objective = build_objective(config.objective, N_ITEMS, counts) if with_objective else None
        model = cls(config.model, N_ITEMS, objective)  # type: ignore[call-arg]
    model.take(small_materials(config))
    try:
        model.fit(made_up_log())
    except EnsuiteError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise
    if model.samples:
        samples = Samples(made_up_log(), config.samples, max_length=model.max_length, batch_size=64, seed=0)
        model.start_epoch(0, samples.everything())
    return model.eval()


def histories(model: Model, n: int = 6, longest: int | None = None) -> History:
    """Read the first ``n`` users' last events, of different lengths."""
    events = made_up_log()
    starts, ends = events.offsets[:n], events.ends[:n]
    width = min(model.max_length, longest or model.max_length)
    return read_history(events, np.maximum(starts, ends - width), ends, events.time[ends - 1] + 5_000)


def training_batch(model: Model, config: RunConfig, batch_size: int = 8) -> Batch:
    """Return the first batch of the kind of samples that ``config`` names."""
    samples = Samples(
        made_up_log(), config.samples, max_length=model.max_length, batch_size=batch_size, seed=0
    )
    return samples.batch(0, 0)


@torch.inference_mode()
def score(model: Model, history: History, first: int = 1, last: int = N_ITEMS + 1) -> torch.Tensor:
    """Score items first..last-1: [B, last - first]."""
    return model.scorer(history, model.catalogue())(first, last)


def pick(history: History, rows: list[int], width: int | None = None) -> History:
    """Take some rows of a history, cut (or padded) to ``width`` positions."""

    def cut(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        more = 0 if width is None else width - values.shape[1]
        return torch.nn.functional.pad(values[rows], (0, more))

    fields = (history.items, history.times, history.request_times, history.sessions)
    return History(*map(cut, fields))  # type: ignore[arg-type]
