"""Text files as frames: separated tables, NDJSON, and the two line formats of the benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ensuite.data.options import PrepareConfig
from ensuite.errors import EnsuiteError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
SAMPLE_ROWS = 1000


def read_text(file: Path, form: str, config: PrepareConfig) -> pl.DataFrame:
    """Parse one text file."""
    data = unpack(file)
    try:
        if form in ("sequences", "pairs"):
            return _read_lines(file.name, data, form)
        if form == "ndjson":
            frame = pl.read_ndjson(data, infer_schema_length=SAMPLE_ROWS)
        else:
            frame = read_separated(
                file.name,
                data,
                config.separator or ("\t" if form == "tsv" else guess_separator(data)),
                config.names,
            )
    except pl.exceptions.PolarsError as error:
        raise EnsuiteError(f"{file.name}: not readable as {form}: {first_line(error)}") from None
    if frame.height == 0:
        raise EnsuiteError(f"{file.name}: no events: the file has a header and no rows")
    return frame


def read_separated(where: str, data: bytes, separator: str, names: Sequence[str] = ()) -> pl.DataFrame:
    """Parse a separated table; a column whose first values look like numbers and a later one does not is kept
    as text.

    So are ids with leading zeros ("0031887"), which a number would lose. Where a row is wrong is said later,
    by name of row, by whoever needs that column as numbers.
    """
    if len(separator) > 1:  # such as the `::` of MovieLens
        data, separator = data.replace(b"\x1f", b" ").replace(separator.encode(), b"\x1f"), "\x1f"
    options: dict[str, Any] = {"separator": separator, "has_header": not names, "encoding": "utf8-lossy"}
    if separator == "\x1f":
        options["quote_char"] = None
    sample = pl.read_csv(data, n_rows=SAMPLE_ROWS, infer_schema=False, **options)
    if names and len(names) != sample.width:
        raise EnsuiteError(
            f"{where}: {sample.width} columns, but --names gives {len(names)}: {', '.join(names)}"
        )
    if (
        not names
        and sum(bool(re.fullmatch(r"-?[\d.]+(_duplicated_\d+)?", c)) for c in sample.columns) * 2
        > sample.width
    ):
        raise EnsuiteError(
            f"{where}: the first line looks like data, not like column names; give --names, as in "
            "--names user item time"
        )
    as_text = [c for c in sample.columns if sample[c].str.contains(r"^0\d").any()]
    try:
        frame = pl.read_csv(
            data,
            schema_overrides=dict.fromkeys(as_text, pl.String),
            infer_schema_length=SAMPLE_ROWS,
            **options,
        )
    except pl.exceptions.ComputeError:
        frame = pl.read_csv(data, infer_schema=False, **options)
        frame = frame.with_columns(_number(frame[c]) for c in frame.columns if c not in as_text)
    return frame.rename(dict(zip(frame.columns, names))) if names else frame


def guess_separator(data: bytes) -> str:
    """Return what separates the words of a CSV file's first line: a comma, where there is one."""
    line = data.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace")
    return next((s for s in (",", "\t", ";", "::", "|") if s in line), ",")


def _number(column: pl.Series) -> pl.Series:
    """The column as integers or floats when every value is one, else as it is."""
    for dtype in (pl.Int64, pl.Float64):
        number = column.cast(dtype, strict=False)
        if number.null_count() == column.null_count():
            return number
    return column


def _read_lines(where: str, data: bytes, form: str) -> pl.DataFrame:
    """Parse `user item item ...` or `user item` lines into columns user and item, in order."""
    lines = pl.read_csv(
        data,
        has_header=False,
        separator="\x1f",
        quote_char=None,
        new_columns=["line"],
        schema={"line": pl.String},
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
    )
    words = (
        lines.with_row_index("row")
        .select("row", word=pl.col("line").str.extract_all(r"\S+"))
        .filter(pl.col("word").list.len() > 0)
    )
    count = pl.col("word").list.len()
    wrong = words.filter(count != 2 if form == "pairs" else count < 2).head(1)
    if wrong.height:
        row, found = wrong.row(0)
        need = "`user item`" if form == "pairs" else "`user item item ...`"
        raise EnsuiteError(
            f"{where}: line {row + 1:,}: {need} is needed, found '{' '.join(found)[:60]}'; is --format "
            f"{form} right?"
        )
    events = words.select(user=pl.col("word").list.first(), item=pl.col("word").list.slice(1)).explode("item")
    if events.height == 0:
        raise EnsuiteError(f"{where}: no events: the file holds no `user item` line")
    if form == "sequences":
        twice = words.filter(pl.col("word").list.first().is_duplicated()).head(1)
        if twice.height:
            raise EnsuiteError(
                f"{where}: user '{twice['word'][0][0]}' has more than one line; in this form a user is "
                "one line. Is it --format pairs?"
            )
    return events.with_columns(_id_number(events["user"]), _id_number(events["item"]))


def _id_number(column: pl.Series) -> pl.Series:
    """Integers when every word is one and none begins with a zero that a number would lose."""
    number = column.cast(pl.Int64, strict=False)
    return column if number.null_count() or column.str.contains(r"^[+-]?0\d").any() else number


def unpack(file: Path) -> bytes:
    """Return a file's bytes, decompressed when its name says so."""
    try:
        with pa.input_stream(str(file), compression=COMPRESSED.get(file.suffix)) as stream:
            return stream.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise EnsuiteError(f"{file.name}: cannot be read: {first_line(error)}") from None


def read_head(file: Path, size: int = 8192) -> bytes:
    try:
        with pa.input_stream(str(file), compression=COMPRESSED.get(file.suffix)) as stream:
            return stream.read(size)
    except (OSError, pa.ArrowInvalid) as error:
        raise EnsuiteError(f"{file.name}: cannot be read: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
