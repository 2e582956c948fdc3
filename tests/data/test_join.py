"""Several datasets as one: every user keeps their events, their order and their split."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import make_dataset

from ensuite.data.dataset import Dataset, Split, write_dataset
from ensuite.data.join import join
from ensuite.data.report import tables
from ensuite.errors import EnsuiteError


def dataset(out: Path, sequences: list[list[int]], **more: object) -> Dataset:
    made = make_dataset(out.with_name(f"made-{out.name}"), sequences)
    items = made.items.with_columns(*more.pop("items", []))  # type: ignore[misc]
    given = {
        "offsets": made.offsets,
        "item_idx": made.item_idx,
        "time": None,
        "split": made.split,
        "items": items,
        "users": made.users,
        "columns": {},
        "card": {"time_unit": None, "split": made.card["split"] | {"users_too_short": 1}},
    }
    return write_dataset(out, **(given | more))  # type: ignore[arg-type]


def events_of(data: Dataset) -> dict[str, tuple[list[str], tuple[int, ...]]]:
    """Return each user's item ids, and where their training, validation and test end."""
    ids, split = data.items["item_id"].cast(pl.String).to_list(), data.split
    return {
        user: (
            [ids[i - 1] for i in data.item_idx[data.offsets[u] : data.offsets[u + 1]]],
            (int(split.train_end[u]), int(split.valid_end[u]), int(split.test_end[u])),
        )
        for u, user in enumerate(data.users["user_id"].cast(pl.String).to_list())
    }


@pytest.fixture
def two(tmp_path: Path) -> tuple[Dataset, Dataset]:
    # ten items, so that as texts their ids come in another order than as numbers
    kinds = pl.Series("kind", [["x", None, "y"]] * 10)
    a = dataset(tmp_path / "b-shop", [[10, 2, 3], [3, 1, 2, 9], [5, 4]], items=[kinds])
    b = dataset(tmp_path / "a-shop", [[1, 2, 3, 1, 2], [2, 2, 1]], items=[pl.lit("z").alias("kind")])
    return a, b


def test_users_keep_their_events_and_their_split(two: tuple[Dataset, Dataset], tmp_path: Path):
    joined = join(two, tmp_path / "both")
    expected = {
        f"{name}:{user}": ([f"{name}:{i}" for i in ids], ends)
        for name, data in (("b-shop", two[0]), ("a-shop", two[1]))
        for user, (ids, ends) in events_of(data).items()
    }
    assert events_of(joined) == expected
    for ids in (joined.items["item_id"].to_list(), joined.users["user_id"].to_list()):
        assert ids == sorted(ids)
    assert joined.items["domain"].to_list() == ["a-shop"] * 3 + ["b-shop"] * 10
    assert set(joined.items["kind"]) == {"z", "x, y"}  # columns of two types become text
    assert joined.card["split"] == {"kind": "leave-one-out", "targets": "next", "users_too_short": 2}
    assert [part["name"] for part in joined.card["source"]["joined"]] == ["b-shop", "a-shop"]
    assert joined.card["report"]["notes"][0].startswith("b-shop: 9 events of 3 users with 10 items")
    assert tables(joined.card)


def test_times_become_those_of_the_finest_unit(tmp_path: Path):
    split = Split(np.array([1]), np.array([2]), np.array([3]))
    card = {"split": {"kind": "leave-one-out", "targets": "next"}}
    seconds, millis = (
        dataset(
            tmp_path / unit,
            [[1, 2, 3]],
            time=np.array([5, 5, 9]),
            split=split,
            card=card | {"time_unit": unit},
        )
        for unit in ("s", "ms")
    )
    joined = join([seconds, millis], tmp_path / "both")
    assert joined.card["time_unit"] == "ms"
    assert joined.time.tolist() == [5, 5, 9, 5000, 5000, 9000]  # ms:u0, s:u0
    assert joined.card["tie_share"] == pytest.approx(4 / 6)
    assert tables(joined.card)
    plain = dataset(tmp_path / "plain", [[1, 2, 3]])
    without = join([seconds, plain], tmp_path / "without")
    assert without.time is None
    assert "times left out: not all of the datasets have them" in without.card["report"]["notes"]


def test_sessions_are_kept_and_other_columns_said(tmp_path: Path):
    columns = {"session": np.array([0, 0, 1]), "rating": np.array([1.0, 2.0, 3.0])}
    a, b = (dataset(tmp_path / name, [[1, 2, 3]], columns=columns) for name in ("a", "b"))
    joined = join([a, b], tmp_path / "both")
    assert joined.column("session").tolist() == [0, 0, 1] * 2
    assert "event columns left out: rating" in joined.card["report"]["notes"]


def test_the_command_joins_and_reports(
    ensuite: Callable[..., subprocess.CompletedProcess[str]], two: tuple[Dataset, Dataset]
):
    said = ensuite("join", *(data.path for data in two), "--out", "both").stdout
    assert "a-shop: 8 events of 2 users with 3 items" in said
    assert "both: 17 events, ready" in said
    done = ensuite("join", two[0].path, "--out", "one", check=False)
    assert done.returncode == 2
    assert "name two or more" in done.stderr


def test_what_cannot_be_one_dataset_is_refused(two: tuple[Dataset, Dataset], tmp_path: Path):
    a, b = two
    out = tmp_path / "out"
    with pytest.raises(EnsuiteError, match="name two or more"):
        join([a], out)
    same = dataset(tmp_path / "x" / "b-shop", [[1, 2, 3]])
    with pytest.raises(EnsuiteError, match="two folders are called 'b-shop'"):
        join([a, same], out)
    whole = {"kind": "unseen-users", "targets": "next"}
    users = Split(np.array([0]), np.array([3]), np.array([3]))
    other = dataset(tmp_path / "other", [[1, 2, 3]], split=users, card={"time_unit": None, "split": whole})
    with pytest.raises(EnsuiteError, match="split in different ways"):
        join([a, other], out)
    joined = join([a, b], out)
    with pytest.raises(EnsuiteError, match="join those that it was made of"):
        join([joined, a], tmp_path / "more")
    with pytest.raises(EnsuiteError, match="exists already"):
        join([a, b], out)
