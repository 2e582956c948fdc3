"""Writing preferences for the steps of a dataset, so that an interruption loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.preferences.schema import NEGATIVE, POSITIVE, write_preferences
from ensuite.preferences.seen import Reader, Seen
from ensuite.preferences.sentiment import Labeller

Write = Callable[[list[Seen], int], list[str] | None]
"""The latest events and the number of the request, to five preferences."""


def plan_steps(dataset: Dataset, latest: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return user rows and steps, from 1 to a user's number of events: [N] int64 each.

    With ``latest`` only the last so many before the user's last event, which are what an evaluation asks for
    (2: validation and test of a leave-one-out split), and the one after it.
    """
    lengths = np.diff(np.asarray(dataset.offsets))
    first = np.maximum(1, lengths - latest) if latest else np.ones_like(lengths)
    count = np.maximum(0, lengths - first + 1)
    user = np.repeat(np.arange(dataset.n_users), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[user]
    return user, step


def write_file(
    dataset: Dataset,
    reader: Reader,
    write: Write,
    label: Labeller,
    out: Path,
    *,
    maker: str,
    latest: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the file ``out``; return how many steps have preferences, and how many have none.

    Every answer goes to ``out``.partial at once; asked again with the same ``maker`` (writer and settings, in
    words) and data, the writing goes on from there.

    Raises
    ------
    EnsuiteError
        When what is there was begun by another maker or of other data.
    """
    user, step = plan_steps(dataset, latest)
    partial = out.with_name(out.name + ".partial")
    head = {"maker": maker, "data": dataset.fingerprint, "latest": latest}
    done = _done(partial, head)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w") as file:  # again without a line that was cut off
            for line in (head, *done):
                file.write(json.dumps(line) + "\n")
            for number in range(len(done), len(user)):
                texts = write(reader.latest(int(user[number]), int(step[number])), number)
                done.append(texts)
                file.write(json.dumps(texts) + "\n")
                file.flush()
                if progress is not None:
                    progress(number + 1, len(user))
    except OSError as error:
        raise EnsuiteError(f"{partial}: cannot be written: {error.strerror or error}") from None
    ids = dataset.users["user_id"]
    names = ids.gather(user).to_list()
    rows = list(_rows(names, step.tolist(), done, label))
    write_preferences(out, rows, ids.dtype)
    partial.unlink()
    return {"steps": len(rows), "without": len(done) - len(rows)}


def _rows(names: list[Any], steps: list[int], lists: list[Any], label: Labeller) -> Iterator[dict[str, Any]]:
    different = sorted({text for texts in lists for text in texts or ()})
    negative = dict(zip(different, label(different)))
    for name, step, texts in zip(names, steps, lists):
        if texts is not None:
            sentiments = [NEGATIVE if negative[text] else POSITIVE for text in texts]
            yield {"user_id": name, "step": step, "preferences": texts, "sentiments": sentiments}


def _done(partial: Path, head: dict[str, Any]) -> list[list[str] | None]:
    """Return the answers that an interrupted writing has left."""
    if not partial.exists():
        return []
    lines = partial.read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    if whole and whole[0] != head:
        raise EnsuiteError(
            f"{partial}: was begun with other settings ({whole[0]}); delete it, or give another --out"
        )
    return whole[1:]
