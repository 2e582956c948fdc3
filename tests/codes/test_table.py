"""The table of semantic ids: from items to codes and back, on disk, and with items that come later."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from ensuite.codes.duplicates import place
from ensuite.codes.random import RandomCodes, RandomConfig
from ensuite.codes.table import SemanticIdTable
from ensuite.errors import EnsuiteError

POLICIES = ["digit", "shared", "reassign"]


def make(
    n: int = 200, policy: str = "digit", levels: int = 2, size: int = 40, spare: int = 5, seed: int = 0
) -> tuple[SemanticIdTable, RandomCodes, np.ndarray]:
    """A table of random codes (many collide), what made it, and vectors of as many new items."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(2 * n, 6)).astype(np.float32)
    tokeniser = RandomCodes(RandomConfig(levels=levels, size=size), 6)
    tokeniser.fit(vectors[:n], torch.Generator().manual_seed(seed))
    coded = tokeniser.encode_array(vectors[:n])
    sizes = tokeniser.level_sizes
    codes = place(coded, policy, sizes, lambda which: tokeniser.moves(vectors[which]), spare)
    if policy == "digit":
        sizes = (*sizes, int(codes[:, -1].max()) + 1 + spare)
    table = SemanticIdTable(
        np.concatenate([np.full((1, len(sizes)), -1, np.int32), codes]),
        sizes,
        policy,  # type: ignore[arg-type]
        False,
        [f"i{i}" for i in range(n)],
        {"tokeniser": {"hash": tokeniser.hash()}, "encoder": {"hash": "e"}},
    )
    return table, tokeniser, vectors[n:]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.sampled_from(POLICIES), st.integers(1, 3), st.integers(0, 10**6))
def test_codes_and_items_are_each_others_inverse(n: int, policy: str, levels: int, seed: int) -> None:
    table, _, _ = make(n, policy, levels, 70, seed=seed)
    for row in range(1, n + 1):
        rows = table.items_of(table.codes[row])
        assert row in rows
        assert all((table.codes[other] == table.codes[row]).all() for other in rows)
        assert rows == sorted(rows)
        if policy != "shared":
            assert rows == [row]
    assert table.unique == (len({tuple(c) for c in table.codes[1:].tolist()}) == n)
    offsets, rows = table.groups()
    assert sorted(rows.tolist()) == list(range(1, n + 1))
    assert (np.diff(offsets) > 0).all()
    assert [tuple(t) for t in table.tuples().tolist()] == sorted({tuple(c) for c in table.codes[1:].tolist()})
    assert table.content_levels == levels


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(POLICIES), st.integers(0, 40), st.integers(1, 3), st.integers(0, 10**6))
def test_appending_leaves_old_codes_and_keeps_the_policy(
    policy: str, added: int, levels: int, seed: int
) -> None:
    table, tokeniser, fresh = make(40, policy, levels, 90, spare=40, seed=seed)
    more = table.append([f"new{i}" for i in range(added)], fresh[:added], tokeniser, encoder="e")
    assert np.array_equal(more.codes[: table.n_items + 1], table.codes)
    assert more.level_sizes == table.level_sizes
    assert more.unique == (policy != "shared" or len(more.tuples()) == more.n_items)
    assert more.item_ids == table.item_ids + [f"new{i}" for i in range(added)]
    coded = tokeniser.encode_array(fresh[:added])
    fixed = levels - 1 if policy == "reassign" else levels  # only the last level of it may move
    assert np.array_equal(more.codes[table.n_items + 1 :, :fixed], coded[:, :fixed])


def test_one_by_one_is_all_at_once() -> None:
    table, tokeniser, fresh = make(100, "digit", 2, 8)
    once = table.append([f"n{i}" for i in range(20)], fresh[:20], tokeniser, encoder="e")
    for i in range(20):
        table = table.append([f"n{i}"], fresh[i : i + 1], tokeniser, encoder="e")
    assert np.array_equal(once.codes, table.codes)
    assert table.provenance["appended"] == 20


def test_the_digit_counts_from_zero_within_a_group() -> None:
    codes = place(np.array([[3, 1], [0, 0], [3, 1], [3, 1]]), "digit", (4, 2), lambda _: np.empty(0))
    assert codes.tolist() == [[3, 1, 0], [0, 0, 0], [3, 1, 1], [3, 1, 2]]


def test_reassigning_moves_as_few_items_as_little_as_possible() -> None:
    costs = np.array([[0.0, 9, 1, 5], [0, 2, 1, 5]])  # of the two that must move
    coded = np.array([[1, 0], [1, 0], [1, 0], [2, 0]])
    asked = []

    def moves(which: np.ndarray) -> np.ndarray:
        asked.append(which.tolist())
        return costs

    assert place(coded, "reassign", (3, 4), moves).tolist() == [[1, 0], [1, 2], [1, 1], [2, 0]]
    assert asked == [[1, 2]]


def test_what_does_not_fit_is_refused() -> None:
    full = np.zeros((5, 2), np.int32)
    with pytest.raises(EnsuiteError, match="5 items share the codes"):
        place(full, "reassign", (1, 4), lambda which: np.zeros((len(which), 4)))
    table, tokeniser, _ = make(30, "digit", 1, 2, spare=0)
    with pytest.raises(EnsuiteError, match="build anew with more --spare"):
        table.append(range(200), np.random.default_rng(3).normal(size=(200, 6)), tokeniser, encoder="e")


def test_an_item_is_appended_once() -> None:
    table, tokeniser, fresh = make()
    with pytest.raises(EnsuiteError, match=r"item i7 .*has codes already"):
        table.append(["x", "i7"], fresh[:2], tokeniser, encoder="e")
    with pytest.raises(EnsuiteError, match=r"item x .*has codes already"):
        table.append(["x", "x"], fresh[:2], tokeniser, encoder="e")


def test_another_tokeniser_or_encoder_is_refused_by_its_hash(tmp_path: Path) -> None:
    table, tokeniser, fresh = make()
    other = make(seed=1)[1]
    with pytest.raises(EnsuiteError, match="another tokeniser"):
        table.append(["x"], fresh[:1], other, encoder="e")
    with pytest.raises(EnsuiteError, match="another encoder: its hash is e, this one's f"):
        table.append(["x"], fresh[:1], tokeniser, encoder="f")
    with pytest.raises(EnsuiteError, match="another tokeniser"):
        table.save(tmp_path / "t", other)


@pytest.mark.parametrize("policy", POLICIES)
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, policy: str) -> None:
    table, tokeniser, _ = make(policy=policy)
    table.save(tmp_path / "t", tokeniser)
    back = SemanticIdTable.load(tmp_path / "t")
    assert np.array_equal(back.codes, table.codes)
    for name in ("level_sizes", "policy", "ordered", "item_ids", "provenance"):
        assert getattr(back, name) == getattr(table, name)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    table, tokeniser, _ = make()
    table.save(tmp_path / "t")
    with pytest.raises(EnsuiteError, match="exists already; choose another --out, or --overwrite"):
        table.save(tmp_path / "t")
    table.save(tmp_path / "t", tokeniser, overwrite=True)
    assert (tmp_path / "t" / "tokeniser.safetensors").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(EnsuiteError, match="no table of codes"):
        table.save(tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("No space left on device"),
        pl.exceptions.ComputeError("No space left on device"),
    ],
)
def test_a_failed_write_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    table, tokeniser, _ = make()
    table.save(tmp_path / "t")

    def full(path: Path) -> None:
        raise error

    monkeypatch.setattr(tokeniser, "save", full)
    with pytest.raises(EnsuiteError, match="No space left on device; nothing was left behind"):
        table.save(tmp_path / "t", tokeniser, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
    assert SemanticIdTable.load(tmp_path / "t").n_items == 200


def test_what_is_not_a_whole_table_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with pytest.raises(EnsuiteError, match="no such table of codes"):
        SemanticIdTable.load(path)
    table, tokeniser, _ = make()
    table.save(path, tokeniser)
    for name in ("codes.parquet", "tokeniser.safetensors"):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[:-1] + b"x")
        with pytest.raises(EnsuiteError, match=f"{name}: edited or damaged"):
            SemanticIdTable.load(path)
        (path / name).unlink()
        with pytest.raises(EnsuiteError, match=f"{name}: missing"):
            SemanticIdTable.load(path)
        (path / name).write_bytes(whole)
    card = json.loads((path / "card.json").read_text())
    for change, said in (
        ({"policy": "shared"}, "card.json: edited since"),
        ({"format_version": 2}, "format 2 of codes, this version of ensuite reads 1"),
        ({"kind": "dataset"}, "no table of codes"),
    ):
        (path / "card.json").write_text(json.dumps(card | change))
        with pytest.raises(EnsuiteError, match=said):
            SemanticIdTable.load(path)
    (path / "card.json").write_text("{")
    with pytest.raises(EnsuiteError, match="missing, damaged or of something else"):
        SemanticIdTable.load(path)


def test_a_dataset_of_other_items_is_refused() -> None:
    table, _, _ = make(4)
    table.check_items(["i0", "i1"], "data")  # items appended later follow
    with pytest.raises(EnsuiteError, match=r"1 of its 2 items have no codes \(such as x\)"):
        table.check_items(["i0", "x"], "data")
    with pytest.raises(EnsuiteError, match="another order"):
        table.check_items(["i1", "i0"], "data")


def test_values_out_of_range_are_refused() -> None:
    good, _, _ = make(3, "shared")
    for codes, said in (
        (good.codes[:-1], "codes are int32"),
        (good.codes.astype(np.int64), "codes are int32"),
        (good.codes + 1, "row 0 is padding"),
        (np.where(good.codes < 0, -1, 99).astype(np.int32), "level 0 of 40 codes holds code 99"),
    ):
        with pytest.raises(ValueError, match=said):
            SemanticIdTable(codes, good.level_sizes, "shared", False, good.item_ids)
    with pytest.raises(ValueError, match="policy = keep"):
        SemanticIdTable(good.codes, good.level_sizes, "keep", False, good.item_ids)  # type: ignore[arg-type]
