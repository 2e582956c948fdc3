"""The file of preferences: what is read of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import make_dataset

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.preferences.schema import read_preferences, write_preferences

ROWS = [
    {"user_id": "u1", "step": 3, "preferences": ["Find tea", "Avoid milk", "Find  cake"]},
    {"user_id": "u0", "step": 2, "preferences": ["Find rice"]},
    {"user_id": "u1", "step": 1, "preferences": ["no sugar please"]},
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "data", [[1, 2, 3], [2, 3, 1, 2]])


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_put_in_order_and_opposites_are_known(dataset, tmp_path):
    found = read_preferences(written(tmp_path / "p.jsonl", ROWS), dataset)
    assert found.user.tolist() == [0, 1, 1]
    assert found.step.tolist() == [2, 1, 3]
    texts = [[found.text(n) for n in row if n] for row in found.members.tolist()]
    assert texts == [["Find rice"], ["no sugar please"], ["Find tea", "Avoid milk", "Find cake"]]
    assert found.negative[:, :3].tolist() == [[False] * 3, [True, False, False], [False, True, False]]
    opposite = {found.text(n): found.text(int(found.opposite[n])) for n in range(1, len(found.texts) + 1)}
    assert opposite["Avoid milk"] == "Find milk"
    assert opposite["no sugar please"] == "search for sugar please"
    assert opposite["Find milk"] == "Find milk"


def test_the_newest_step_that_may_be_used_is_found(dataset, tmp_path):
    found = read_preferences(written(tmp_path / "p.jsonl", ROWS), dataset)
    user = np.array([0, 0, 0, 1, 1, 1, 1])
    index = np.array([0, 1, 2, 0, 1, 2, 3])
    assert found.row_at(user, index).tolist() == [-1, -1, 0, -1, 1, 1, 2]


@pytest.mark.parametrize("name", ["p.parquet", "p.jsonl"])
def test_what_is_written_is_read_again(dataset, tmp_path, name):
    rows = [row | {"sentiments": ["negative"] * len(row["preferences"])} for row in ROWS]
    write_preferences(tmp_path / "new" / name, rows, pl.String())
    found = read_preferences(tmp_path / "new" / name, dataset)
    assert len(found.user) == 3
    assert found.negative.sum() == 5  # the file's word, not the rule's
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"user_id": "nobody"}, r"1 of 3 rows are of users that .* has not \('nobody'\); its user ids look"),
        ({"step": 5}, "row 1: step 5 of user 'u1', who has 4 events"),
        ({"step": 0}, "row 1: step 0 of user 'u1'"),
        ({"step": 1}, "user 'u1', step 1: this step has two rows"),
        ({"preferences": []}, "user 'u1', step 3: the list of preferences is empty"),
        ({"preferences": None}, "user 'u1', step 3: the list of preferences is empty"),
        ({"preferences": ["Find tea", " "]}, "a preference is empty"),
        ({"preferences": ["Find x"] * 6}, "6 preferences; at most 5"),
        ({"sentiments": ["positive"]}, "1 sentiments of 3 preferences"),
        ({"sentiments": ["positive", "meh", "positive"]}, "positive or negative, not 'positive', 'meh'"),
    ],
)
def test_a_row_that_is_wrong_is_named(dataset, tmp_path, change, why):
    rows = [ROWS[0] | change, *ROWS[1:]]
    with pytest.raises(EnsuiteError, match=why):
        read_preferences(written(tmp_path / "p.jsonl", rows), dataset)


def test_a_file_that_is_none_is_refused(dataset, tmp_path):
    with pytest.raises(EnsuiteError, match="no such file; make one with `ensuite preferences"):
        read_preferences(tmp_path / "p.parquet", dataset)
    (tmp_path / "p.parquet").write_text("text")
    with pytest.raises(EnsuiteError, match="neither Parquet nor"):
        read_preferences(tmp_path / "p.parquet", dataset)
    with pytest.raises(EnsuiteError, match="no column 'preferences'"):
        read_preferences(written(tmp_path / "p.jsonl", [{"user_id": "u0", "step": 1}]), dataset)
    pl.DataFrame({"user_id": [], "step": [], "preferences": []}).write_parquet(tmp_path / "none.parquet")
    with pytest.raises(EnsuiteError, match="holds no row"):
        read_preferences(tmp_path / "none.parquet", dataset)
    rows = [row | {"step": str(row["step"])} for row in ROWS]
    with pytest.raises(EnsuiteError, match="column 'step' holds String"):
        read_preferences(written(tmp_path / "p.jsonl", rows), dataset)
