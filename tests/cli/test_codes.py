"""`ensuite codes` through the command line: a walk, and what users get wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import make_dataset
from content.small_encoder import WORDS, write_encoder

from ensuite.codes.table import SemanticIdTable
from ensuite.data.options import PrepareConfig
from ensuite.data.prepare import prepare
from ensuite.training.loop import train

pytest.importorskip("transformers")
TEXT = ("--text", "{title} ({brand}), {kinds}")
SMALL = ("--levels", 2, "--size", 4, "--quiet")
Shell = Callable[..., tuple[int, str, str]]


def write_items(out: Path, items: pl.DataFrame) -> Path:
    """A dataset with these items, each in the histories of a few users."""
    n = items.height
    log = [(f"u{u}", items["item_id"][(u + i) % n], i) for u in range(n) for i in range(4)]
    prepare(
        pl.DataFrame(log, schema=["user", "item", "order"], orient="row"),
        out=out,
        config=PrepareConfig(user="user", item="item", order="order", items=_written(items, out)),
    )
    return out


def _written(items: pl.DataFrame, out: Path) -> str:
    items.write_parquet(out.with_suffix(".items.parquet"))
    return str(out.with_suffix(".items.parquet"))


def item_table(n: int = 30, first: int = 0) -> pl.DataFrame:
    words = WORDS[5:]
    title = [f"{words[i % 9]} {words[i % 7 + 3]} {words[i % 18]}" for i in range(first, first + n)]
    return pl.DataFrame(
        {
            "item_id": [f"i{i:02}" for i in range(first, first + n)],
            "title": title,
            "brand": [None if i % 4 == 0 else words[13 + i % 5] for i in range(first, first + n)],
            "kinds": [[["soap", "a"], ["soap"]] for _ in range(n)],
            "empty": pl.Series([None] * n, dtype=pl.String),
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with 30 items, encoder/ (a tiny Transformer), cache/."""
    home = tmp_path_factory.mktemp("codes")
    write_items(home / "data", item_table())
    write_encoder(home / "encoder", pooling="mean", normalize=True)
    return home


@pytest.fixture
def codes(ensuite: Callable[..., object], home: Path, tmp_path: Path) -> Shell:
    """Run `ensuite codes ...`: status, standard output, standard error."""

    def call(*argv: object, cached: bool = True) -> tuple[int, str, str]:
        cache = ("--cache", home / "cache") if cached and argv[0] in ("build", "append", "report") else ()
        done = ensuite("codes", *argv, *cache, check=False)
        return done.returncode, " ".join(done.stdout.split()), " ".join(done.stderr.split())  # type: ignore[attr-defined]

    return call


@pytest.fixture
def built(codes: Shell, home: Path, tmp_path: Path) -> Path:
    """A table of rq-k-means codes."""
    status, out, err = codes(
        "build", home / "data", "--out", "t", *TEXT, "--encoder", home / "encoder", *SMALL
    )
    assert (status, err) == (0, "")
    assert "Next: ensuite codes report t --data" in out
    return tmp_path / "t"


def test_a_walk(codes: Shell, home: Path, built: Path, tmp_path: Path) -> None:
    table = SemanticIdTable.load(built)
    assert table.item_ids == [f"i{i:02}" for i in range(30)]
    assert table.level_sizes[:2] == (4, 4)
    assert table.unique
    made = table.provenance
    assert made["encoder"]["template"] == TEXT[1]
    assert made["tokeniser"]["kind"] == "rq-k-means"

    status, out, _ = codes("report", built)
    assert status == 0
    assert "items that share" in out
    assert "With --data DATA also" in out
    assert "Neighbours kept" not in out

    status, out, _ = codes("report", built, "--data", home / "data", "--out", "report")
    assert "Neighbours kept" in out
    svg = (tmp_path / "report" / "codes.svg").read_text()
    assert svg.startswith("<svg")
    assert "perplexity" in svg
    assert "variance not explained" in svg
    saved = json.loads((tmp_path / "report" / "codes.json").read_text())
    status, out, _ = codes("report", built, "--data", home / "data", "--json")
    assert json.loads(out) == saved
    assert saved["levels"][1]["error"] < saved["levels"][0]["error"] < 1

    item_table(5, first=30).write_parquet(tmp_path / "new.parquet")
    status, out, _ = codes("append", built, "--items", "new.parquet", "--quiet")
    assert status == 0
    assert "5 items appended, 35 in all; no old code has changed" in out
    longer = SemanticIdTable.load(built)
    assert np.array_equal(longer.codes[:31], table.codes)
    assert longer.item_ids[30:] == [f"i{i:02}" for i in range(30, 35)]
    assert longer.unique
    status, out, _ = codes("report", built, "--data", home / "data")  # of the dataset's items still
    assert status == 0


def test_the_table_is_the_same_each_time(codes: Shell, home: Path, built: Path, tmp_path: Path) -> None:
    again = ("build", home / "data", "--out", "again", *TEXT, "--encoder", home / "encoder", *SMALL)
    assert codes(*again)[0] == 0
    assert (built / "codes.parquet").read_bytes() == (tmp_path / "again" / "codes.parquet").read_bytes()
    status, _, err = codes(*again)
    assert status == 2
    assert "again: exists already; choose another --out, or --overwrite" in err
    assert codes(*again, "--overwrite", "--seed", 5)[0] == 0
    assert (built / "codes.parquet").read_bytes() != (tmp_path / "again" / "codes.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["rq-vae", "opq", "fsq", "mpq", "lsh", "random"])
def test_every_tokeniser_from_the_command_line(codes: Shell, home: Path, kind: str, tmp_path: Path) -> None:
    flags = {
        "rq-vae": ("--size", 4, "--steps", 5, "--hidden", 8, "--latent", 4),
        "opq": ("--size", 4, "--levels", 2),
        "fsq": ("--steps", 5, "--levels", 2, "--heads", 2, "--grid", 3, 3, "--lr", 0.1),
        "mpq": ("--size", 4, "--steps", 5, "--hidden", 8, "--latent", 4),
    }.get(kind, ())
    status, _, err = codes(
        "build", home / "data", "--out", "t", *TEXT, "--encoder", home / "encoder",
        "--tokeniser", kind, *flags, "--least-usage", 0, "--quiet", "--duplicates", "shared",
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert SemanticIdTable.load(tmp_path / "t").provenance["tokeniser"]["kind"] == kind
    assert codes("report", tmp_path / "t", "--data", home / "data")[0] == 0


def test_every_flag_of_build_does_something(codes: Shell, home: Path, tmp_path: Path) -> None:
    def build(name: str, *flags: object) -> SemanticIdTable:
        done = codes("build", home / "data", "--out", name, "--encoder", home / "encoder", *SMALL, *flags)
        assert done[0] == 0, done
        return SemanticIdTable.load(tmp_path / name)

    plain = build("plain", *TEXT)
    assert build("spare", *TEXT, "--spare", 3).level_sizes[-1] == plain.level_sizes[-1] - 13
    assert build("shared", *TEXT, "--duplicates", "shared").levels == 2
    assert build("moved", *TEXT, "--duplicates", "reassign", "--size", 16).unique
    assert build("train", *TEXT, "--fit-on", "train").provenance["vectors"]["fitted_on"] <= 30
    assert build("text", "--text", "{title}").provenance["vectors"] != plain.provenance["vectors"]
    status, out, _ = codes("build", "--tokeniser", "rq-vae", "--preset", "paper", "--help")
    assert status == 0
    assert "240000" in out


def test_vectors_of_a_trained_run(codes: Shell, ensuite: Callable[..., object], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "d", [[(u + i) % 20 + 1 for i in range(6)] for u in range(40)])
    recipe = {"model": {"dim": 8, "blocks": 1, "heads": 1}, "training": {"epochs": 1}}
    train("sasrec", data, tmp_path / "run", recipe=recipe, progress=False)
    train("popularity", data, tmp_path / "popularity", progress=False)
    build = ("build", data.path, "--out", "t", *SMALL, "--encoder")
    assert codes(*build, "run:run")[0] == 0
    made = SemanticIdTable.load(tmp_path / "t").provenance["encoder"]
    assert (made["name"], made["model"], made["dim"]) == (f"run:{tmp_path / 'run'}", "sasrec", 8)
    assert codes("report", "t", "--data", data.path)[0] == 0
    pl.DataFrame({"item_id": [999]}).write_parquet(tmp_path / "new.parquet")
    other = make_dataset(tmp_path / "other", [[1, 2, 3, 4]] * 5)
    for words, said in (
        (
            ("append", "t", "--items", "new.parquet"),
            "made of the item vectors of a run (run:",
        ),
        (("build", other.path, "--out", "u", "--encoder", "run:run"), "trained on other items than those of"),
        (
            ("build", data.path, "--out", "u", "--encoder", "run:popularity"),
            "which has no item vectors",
        ),
        (("build", data.path, "--out", "u", "--encoder", "run:run", *TEXT), "vectors of a run need none"),
        (("build", data.path, "--out", "u", "--encoder", "run:nowhere"), "no such run"),
    ):
        status, _, err = codes(*words)
        assert status == 2
        assert said in err


def test_items_without_text(codes: Shell, home: Path, tmp_path: Path) -> None:
    items = item_table().with_columns(
        title=pl.when(pl.int_range(30) < 3).then(None).otherwise(pl.col("title")),
        brand=pl.when(pl.int_range(30) < 2).then(None).otherwise(pl.col("brand")),
    )
    write_items(tmp_path / "data", items)
    build = ("build", "data", "--text", "{title} {brand}", "--encoder", home / "encoder", *SMALL)
    status, _, err = codes(*build, "--out", "t")
    assert status == 2
    assert "data: 2 of 30 items have no text (such as i00); say what they get" in err
    status, out, _ = codes(*build, "--out", "zero", "--without-text", "zero")
    assert "2 without text" in out
    zero = SemanticIdTable.load(tmp_path / "zero")
    assert np.array_equal(zero.codes[1, :2], zero.codes[2, :2])
    assert zero.provenance["vectors"]["fitted_on"] == 28
    assert codes(*build, "--out", "id", "--without-text", "id")[0] == 0
    assert SemanticIdTable.load(tmp_path / "id").provenance["vectors"]["fitted_on"] == 30


def test_items_with_one_text(codes: Shell, home: Path, tmp_path: Path) -> None:
    items = item_table().with_columns(title=pl.Series(["red soap"] * 20 + ["oil"] * 10))
    write_items(tmp_path / "data", items)
    build = ("build", "data", "--out", "t", "--text", "{title}", "--encoder", home / "encoder", *SMALL)
    status, _, err = codes(*build, "--least-usage", 0.6)
    assert status == 2
    assert "rq-k-means: collapsed: level 0 uses 2 of 4 possible codes" in err
    assert not (tmp_path / "t").exists()
    _, out, _ = codes(*build, "--least-usage", 0)
    assert "2 different texts, 28 items with the text of another" in out
    assert SemanticIdTable.load(tmp_path / "t").unique


def test_mistakes_are_refused_in_one_line(codes: Shell, home: Path, built: Path, tmp_path: Path) -> None:
    encoder = ("--encoder", home / "encoder")
    build = ("build", home / "data", "--out", "u", "--quiet")
    item_table(2, first=30).write_parquet(tmp_path / "new.parquet")
    item_table(2, first=29).write_parquet(tmp_path / "known.parquet")
    pl.concat([item_table(1, first=40)] * 2).write_parquet(tmp_path / "twice.parquet")
    item_table(2, first=30).drop("title").write_parquet(tmp_path / "untitled.parquet")
    pl.DataFrame({"name": ["a"]}).write_parquet(tmp_path / "unnamed.parquet")
    item_table(2, first=50).with_columns(pl.lit(None, pl.String).alias("item_id")).write_parquet(
        tmp_path / "null.parquet"
    )
    append = ("append", built, "--quiet", "--items")
    for words, said in (
        (("bild",), "unknown command 'codes bild'; did you mean 'build'?"),
        ((*build, *encoder), "--text (or --images) is needed, such as --text '{title}' (item columns of"),
        ((*build, "--text", "title", *encoder), "no column in braces"),
        ((*build, "--text", "{titel}", *encoder), "no item column 'titel' (--text); did you mean 'title'"),
        ((*build, "--text", "{empty}", *encoder), "item column 'empty' is empty for all 30 items"),
        (
            (*build, *TEXT, "--encoder", "./nowhere"),
            "encoder ./nowhere: no such folder; known by",
        ),
        ((*build, *TEXT, "--tokeniser", "rq-kmeans"), "did you mean 'rq-k-means'?"),
        ((*build, *TEXT, "--preset", "paper"), "rq-k-means has no such preset"),
        ((*build, *TEXT, "--levels", 0, *encoder), "levels = 0: at least 1 is needed"),
        ((*build, *TEXT, *encoder, "--size", 400), "30 points cannot make 400 clusters"),
        ((*build, *TEXT, *encoder, *SMALL, "--device", "abacus"), "--device abacus: cannot be used"),
        (("build", tmp_path, "--out", "u", *TEXT), "no dataset: card.json is missing"),
        (("build", home / "data", "--out", home / "data", "--overwrite", *TEXT), "and is no table of codes"),
        (("report", "nowhere"), "nowhere: no such table of codes; make one with"),
        (("report", home / "data"), "no table of codes"),
        ((*append, "known.parquet"), "item i29 (row 1 of 2) has codes already"),
        ((*append, "twice.parquet"), "item i40 (row 2 of 2) has codes already"),
        ((*append, "untitled.parquet"), "no item column 'title'"),
        ((*append, "unnamed.parquet"), "no column looks like the item_id"),
        ((*append, "null.parquet"), "row 1 has no item_id"),
        ((*append, "missing.parquet"), "missing.parquet: no such file"),
    ):
        before = SemanticIdTable.load(built).n_items
        status, _, err = codes(*words)
        assert status == 2, words
        assert said in err, err
        assert "Traceback" not in err
        assert SemanticIdTable.load(built).n_items == before
    assert not (tmp_path / "u").exists()
    shutil.copy(tmp_path / "new.parquet", tmp_path / "both.parquet")
    assert codes(*append, "new.parquet")[0] == 0
    status, _, err = codes(*append, "both.parquet")
    assert "item i30 (row 1 of 2) has codes already" in err


def test_another_encoder_or_tokeniser_is_refused_by_hash(
    codes: Shell, home: Path, built: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / "mine"
    shutil.copytree(home / "encoder", encoder)
    assert codes("build", home / "data", "--out", "u", *TEXT, "--encoder", "mine", *SMALL)[0] == 0
    shutil.move(encoder, tmp_path / "moved")
    status, _, err = codes("report", "u", "--data", home / "data")
    assert f"encoder {encoder}: no such folder" in err
    assert codes("report", "u", "--data", home / "data", "--encoder", "moved")[0] == 0
    write_encoder(encoder, pooling="mean", normalize=True, seed=1)
    item_table(2, first=30).write_parquet(tmp_path / "new.parquet")
    for words in (("append", "u", "--items", "new.parquet"), ("report", "u", "--data", home / "data")):
        status, _, err = codes(*words)
        assert status == 2
        assert "its hash is" in err
    other = tmp_path / "v"
    flags = (*TEXT, "--encoder", home / "encoder", *SMALL)
    assert codes("build", home / "data", "--out", other, *flags, "--seed", 3)[0] == 0
    shutil.copy(other / "tokeniser.safetensors", built / "tokeniser.safetensors")
    status, _, err = codes("append", built, "--items", "new.parquet")
    assert status == 2
    assert "tokeniser.safetensors: edited or damaged since it was written" in err
    (built / "tokeniser.safetensors").unlink()
    status, _, err = codes("append", built, "--items", "new.parquet")
    assert "tokeniser.safetensors: missing" in err


def test_a_dataset_of_other_items_is_refused(codes: Shell, home: Path, built: Path, tmp_path: Path) -> None:
    write_items(tmp_path / "other", item_table(30, first=5))
    status, _, err = codes("report", built, "--data", "other")
    assert status == 2
    assert "5 of its 30 items have no codes (such as i30)" in err


def test_help_teaches(codes: Shell) -> None:
    status, out, _ = codes("--help")
    assert status == 0
    for word in ("build", "report", "append", "rq-vae", "rq-k-means", "opq", "fsq", "mpq", "lsh", "random"):
        assert word in out
    for command in ("report", "append"):
        status, out, _ = codes(command, "--help", cached=False)
        assert status == 0
        assert f"ensuite codes {command} codes/beauty" in out
