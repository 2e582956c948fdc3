"""One log, five engines, one folder: byte for byte."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensuite.data.prepare import PrepareConfig, prepare

CONFIG = PrepareConfig(min_user=2, min_item=2, min_rating=2, drop_duplicates=True)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    n = 3000
    columns = {
        "user_id": rng.integers(0, 150, n) * 7919,
        "item_id": [f"B{i:04d}" for i in rng.integers(0, 80, n)],
        "timestamp": 1_600_000_000 + rng.integers(0, 500, n),  # many ties
        "rating": rng.integers(1, 6, n).astype(np.float64),
        "kind": rng.choice(["view", "click"], n),
    }
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def reference(log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(log, out=tmp_path_factory.mktemp("polars") / "data", config=CONFIG).path


def assert_same_folder(a: Path, b: Path) -> None:
    names = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(a, b, [str(n) for n in names], shallow=False)[1:] == ([], [])


@pytest.mark.parametrize("engine", ["lazy", "pandas", "pyarrow", "duckdb", "polars"])
def test_tables_of_every_engine_give_the_same_bytes(
    engine: str, log: pl.DataFrame, reference: Path, tmp_path: Path
) -> None:
    table: Any
    if engine == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        arrow = log.to_arrow()
        connection = duckdb.connect()
        table = connection.from_arrow(arrow)
    elif engine == "pandas":
        pytest.importorskip("pandas")
        table = log.to_pandas()
    else:
        table = {"lazy": log.lazy(), "pyarrow": log.to_arrow()}.get(engine, log.clone())
    assert_same_folder(reference, prepare(table, out=tmp_path / "data", config=CONFIG).path)


def test_duckdb_reading_a_parquet_file(log: pl.DataFrame, reference: Path, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    log.write_parquet(tmp_path / "log.parquet", row_group_size=500)
    relation = duckdb.connect().read_parquet(str(tmp_path / "log.parquet"))
    assert_same_folder(reference, prepare(relation, out=tmp_path / "data", config=CONFIG).path)


def test_pyspark_gives_the_same_bytes(log: pl.DataFrame, reference: Path, tmp_path: Path) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    if shutil.which("java") is None:
        pytest.skip("PySpark needs Java, which is not on this machine")
    log.write_parquet(tmp_path / "log.parquet")
    builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.warehouse.dir", str(tmp_path / "warehouse")).getOrCreate()
    try:
        frame = session.read.parquet(str(tmp_path / "log.parquet"))
        assert_same_folder(reference, prepare(frame, out=tmp_path / "data", config=CONFIG).path)
    finally:
        session.stop()


def test_files_and_tables_hold_the_same_events(log: pl.DataFrame, reference: Path, tmp_path: Path) -> None:
    """Only the card's word on the source differs."""
    log.write_parquet(tmp_path / "log.parquet")
    log.write_csv(tmp_path / "log.csv")
    for name in ("log.parquet", "log.csv"):
        path = prepare(tmp_path / name, out=tmp_path / f"{name}.data", config=CONFIG).path
        shutil.copy(reference / "card.json", path / "card.json")
        assert_same_folder(reference, path)
