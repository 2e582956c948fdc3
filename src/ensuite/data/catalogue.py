"""Public datasets by name: where each is, which file of it holds the events, and how that is laid out.

Nothing is downloaded unless ``--from URL`` asks for it. Terms of use differ: read them at the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl


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
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


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
        about,
        f"{GROUPLENS}/{name}.zip",
        Member("ratings.csv"),
        Member("movies.csv"),
        columns={"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"},
        tidy=_split_year,
    )


def _ml_dat(name: str, about: str, users: Member | None = None) -> Public:
    return Public(
        about,
        f"{GROUPLENS}/{name}.zip",
        Member("ratings.dat", "::", ("user_id", "item_id", "rating", "timestamp")),
        Member("movies.dat", "::", ("item_id", "title", "genres"), "latin-1"),
        users,
        columns=MOVIELENS,
        tidy=_split_year,
    )


def _amazon_2014(category: str) -> Public:
    url = f"https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_{category}_5.json.gz"
    return Public(
        f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core",
        url,
        Member("*.json*", ndjson=True),
        columns={
            "user": "reviewerID",
            "item": "asin",
            "time": "unixReviewTime",
            "rating": "overall",
            "time_unit": "s",
        },
    )


def _amazon_2023(category: str) -> Public:
    url = f"https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/benchmark/5core/rating_only/{category}.csv.gz"
    return Public(
        f"Amazon reviews 2023, {category.replace('_', ' ')}, 5-core",
        url,
        Member("*.csv*"),
        columns={"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"},
    )


PUBLIC: dict[str, Public] = {
    "ml-small": Public(
        "MovieLens, 100,004 ratings of 671 users on 9,066 films; in `ensuite[demo]`, no download", ""
    ),
    "ml-100k": Public(
        "MovieLens 100K, 1998",
        f"{GROUPLENS}/ml-100k.zip",
        Member("u.data", "\t", ("user_id", "item_id", "rating", "timestamp")),
        Member("u.item", "|", ("item_id", "title", "release", "video", "url", *GENRES), "latin-1"),
        Member("u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code")),
        MOVIELENS,
        _ml_100k_items,
    ),
    "ml-1m": _ml_dat(
        "ml-1m",
        "MovieLens 1M, 2003",
        Member("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip_code")),
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
        "Gowalla check-ins, 2009-2010",
        "https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        Member("*otalCheckins.txt*", "\t", ("user_id", "time", "latitude", "longitude", "item_id")),
        columns={"user": "user_id", "item": "item_id", "time": "time"},
    ),
    "retailrocket": Public(
        "RetailRocket clicks, carts and purchases, 2015",
        "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
        Member("events.csv"),
        columns={"user": "visitorid", "item": "itemid", "time": "timestamp", "kind": "event"},
    ),
    "yoochoose": Public(
        "Yoochoose clicks, RecSys Challenge 2015",
        "https://s3-eu-west-1.amazonaws.com/yc-rdata/yoochoose-data.7z",
        Member("yoochoose-clicks.dat*", ",", ("session_id", "timestamp", "item_id", "category")),
        columns={"user": "session_id", "item": "item_id", "time": "timestamp"},
    ),
    "diginetica": Public(
        "Diginetica views, CIKM Cup 2016",
        "https://competitions.codalab.org/competitions/11161",
        Member("train-item-views.csv", ";"),
        columns={"user": "sessionId", "item": "itemId", "time": "eventdate", "order": "timeframe"},
    ),
    "lastfm-1k": Public(
        "Last.fm listens of 1,000 users",
        "http://mtg.upf.edu/static/datasets/last.fm/lastfm-dataset-1K.tar.gz",
        Member(
            "userid-timestamp-artid-artname-traid-traname.tsv",
            "\t",
            ("user_id", "time", "artist_id", "artist", "track_id", "track"),
        ),
        columns={"user": "user_id", "item": "artist_id", "time": "time"},
    ),
    "kuairand-pure": Public(
        "KuaiRand-Pure, short videos with many kinds of feedback, 2022",
        "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
        Member("log_standard_*.csv"),
        Member("video_features_basic_pure.csv"),
        Member("user_features_pure.csv"),
        columns={"user": "user_id", "item": "video_id", "time": "time_ms"},
    ),
}
