"""The dataset folder: opened in milliseconds, refused by the name of what was truncated, edited or lost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensuite.cli import main
from ensuite.data.dataset import Dataset, index_ids
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path / "cache"))
    log = pl.DataFrame(
        {"user": [1, 1, 1, 2, 2, 2] * 50, "item": range(300), "time": range(300), "kind": ["a", "b"] * 150}
    )
    return prepare(log, out=tmp_path / "data")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4])


def edit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def edit_unseen(file: Path) -> None:
    """As `edit`, with the time of modification put back: only a full check can see it."""
    stat = file.stat()
    edit(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


FILES = [
    "offsets.npy", "item_idx.npy", "time.npy", "train_end.npy", "valid_end.npy", "test_end.npy",
    "columns/kind.npy", "columns/kind.labels.parquet", "items.parquet", "users.parquet",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncate, "truncated or edited: "), (edit, "edited since"), (Path.unlink, "missing")],
)
def test_damaged_file_is_refused_by_its_name(
    name: str, damage: Callable[[Path], None], said: str, dataset: Dataset
) -> None:
    damage(dataset.path / name)
    with pytest.raises(EnsuiteError, match=f"{name}: {said}.*prepare the dataset again"):
        Dataset.open(dataset.path)


def test_every_file_is_in_the_card(dataset: Dataset) -> None:
    assert sorted(FILES) == sorted(dataset.card["files"])
    assert {p.relative_to(dataset.path).as_posix() for p in dataset.path.rglob("*") if p.is_file()} == {
        *FILES,
        "card.json",
    }


def test_verify_hashes_everything(dataset: Dataset) -> None:
    edit_unseen(dataset.path / "time.npy")
    Dataset.open(dataset.path)
    with pytest.raises(EnsuiteError, match=r"time\.npy: edited since"):
        Dataset.open(dataset.path, verify=True)


def test_a_copy_is_checked_once_and_right(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.path, tmp_path / "copy")
    assert Dataset.open(tmp_path / "copy").fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda card: card["split"].update(kind="global-time"), "card.json: edited since"),
        (lambda card: card.update(format_version=99), "dataset format 99, this version of ensuite reads 1"),
        (lambda card: card.pop("files"), "card.json: (damaged|edited)"),
    ],
)
def test_edited_card_is_refused(change: Callable[[dict], None], said: str, dataset: Dataset) -> None:
    file = dataset.path / "card.json"
    card = json.loads(file.read_text())
    change(card)
    file.write_text(json.dumps(card))
    with pytest.raises(EnsuiteError, match=said):
        Dataset.open(dataset.path)


def test_truncated_card_and_other_folders(dataset: Dataset, tmp_path: Path) -> None:
    truncate(dataset.path / "card.json")
    with pytest.raises(EnsuiteError, match=r"card\.json: damaged"):
        Dataset.open(dataset.path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EnsuiteError, match=r"card\.json is missing"):
        Dataset.open(tmp_path / "empty")
    with pytest.raises(EnsuiteError, match="no such dataset folder; make one with `ensuite prepare"):
        Dataset.open(tmp_path / "nowhere")


def test_damage_is_told_on_the_command_line(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    truncate(dataset.path / "item_idx.npy")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "popularity", "--data", str(dataset.path), "--out", str(tmp_path / "run")])
    assert "item_idx.npy: truncated or edited" in capsys.readouterr().err


def test_opening_does_not_read_the_data(tmp_path: Path) -> None:
    n = 2_000_000
    log = pl.DataFrame({"user": np.arange(n) // 20, "item": np.arange(n) % 1000, "time": np.arange(n)})
    path = prepare(log, out=tmp_path / "data").path
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        opened = Dataset.open(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.01
    assert isinstance(opened.item_idx, np.memmap)


def test_ids_are_found_as_numbers_or_text(dataset: Dataset) -> None:
    assert index_ids(dataset.items, "item_id", [0, "299", 300, "x"]).tolist() == [1, 300, 0, 0]


def test_empty_optional_arrays_and_order_only(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"]})
    dataset = prepare(log, out=tmp_path / "data", config=PrepareConfig())
    assert dataset.time is None
    assert dataset.events("train").rows().tolist() == [0]
    assert len(dataset.cases("test")) == 1
