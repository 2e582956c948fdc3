"""A made-up world in which the history tells one half of the next item and a stated preference the other.

Items are pairs of a kind and a colour. A user keeps to one colour; which kind comes next nobody could tell
from the past, but the user says it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from content.small_encoder import write_encoder

from ensuite.codes.table import SemanticIdTable
from ensuite.content.encoders import load_encoder
from ensuite.data.dataset import Dataset, Split, write_dataset

KINDS = ("soap", "nail", "oil", "brush", "hair", "cream", "for", "the", "d", "e")
COLOURS = ("red", "blue", "a", "b", "c")
N_USERS, LENGTH = 150, 6
TITLE = "{title}"
MODEL = {"dim": 32, "blocks": 1, "heads": 2, "head_dim": 16, "inner": 64, "dropout": 0.0, "normalise": True}


@dataclass(frozen=True)
class World:
    dataset: Dataset
    encoder: Path
    codes: Path
    wishes: Path
    """The file of preferences: "find" the kind of the next event, and "avoid" what came before."""

    def recipe(self, **model: object) -> dict[str, object]:
        read = {} if model.get("inputs") == "history" else {"file": str(self.wishes), "choice": "last"}
        return {
            "model": MODEL | model,
            "codes": {"table": str(self.codes)},
            "preferences": read,
            "training": {"epochs": 60, "batch_size": 64, "lr": 0.004, "patience": 0, "validate_every": 20},
        }


def make_world(folder: Path) -> World:
    """Write the dataset with its ratings (the last event of every third user is disliked), a small encoder,
    the table of codes (kind, colour) and the preferences."""
    rng = np.random.default_rng(0)
    n_items = len(KINDS) * len(COLOURS)
    kind = rng.random((N_USERS, len(KINDS))).argsort(1)[:, :LENGTH]  # none twice
    colour = rng.integers(len(COLOURS), size=(N_USERS, 1))
    rating = np.full((N_USERS, LENGTH), 5.0)
    rating[::3, -1] = 1.0
    lengths = np.full(N_USERS, LENGTH)
    titles = [f"{a} of {b}" for a in KINDS for b in COLOURS]
    ids = [f"i{n:02}" for n in range(n_items)]
    dataset = write_dataset(
        folder / "data",
        offsets=np.arange(N_USERS + 1) * LENGTH,
        item_idx=(kind * len(COLOURS) + colour + 1).ravel(),
        time=None,
        split=Split(lengths - 2, lengths - 1, lengths),
        items=pl.DataFrame(
            {"item_id": ids, "title": titles, "genres": [[a] for a in KINDS for _ in COLOURS]}
        ),
        users=pl.DataFrame({"user_id": [f"u{n}" for n in range(N_USERS)]}),
        columns={"rating": rating.ravel()},
        card={"time_unit": None, "split": {"kind": "leave-one-out", "targets": "next"}},
    )
    encoder = write_encoder(folder / "encoder", pooling="mean", positions=160, normalize=True)
    codes = np.full((n_items + 1, 2), -1, np.int32)
    codes[1:] = np.stack(np.divmod(np.arange(n_items), len(COLOURS)), 1)
    made = {"name": str(encoder), "hash": load_encoder(str(encoder)).hash, "template": TITLE}
    table = SemanticIdTable(
        codes, (len(KINDS), len(COLOURS)), "shared", True, ids, {"tokeniser": {}, "encoder": made}
    )
    table.save(folder / "codes")
    rows = [
        {
            "user_id": f"u{user}",
            "step": step,
            "preferences": [
                f"avoid {KINDS[kind[user, step - 1]]} {COLOURS[colour[user, 0]]}",
                f"find {KINDS[kind[user, step]]}",
            ],
        }
        for user in range(N_USERS)
        for step in range(1, LENGTH)
    ]
    wishes = folder / "wishes.jsonl"
    wishes.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return World(dataset, encoder, folder / "codes", wishes)
