"""Files of a log, in any form we know, as one lazy frame.

Tables (CSV, TSV, NDJSON, Parquet) are found by extension, else by content; the two text formats of the
benchmarks (`sequences`, `pairs`) hold an order and no times. .gz, .zst, .bz2 and .lz4 are unpacked on the
way.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pyarrow as pa

from ensuite.data.columns import guess
from ensuite.data.options import PrepareConfig
from ensuite.errors import EnsuiteError

EXTENSIONS = {
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".inter": "tsv", ".json": "ndjson", ".ndjson": "ndjson", ".jsonl": "ndjson",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
MAGIC = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG image",
    b"%PDF": "PDF",
    b"ARROW1": "Arrow IPC",
}
TEXT = ("csv", "tsv", "ndjson", "sequences", "pairs")
SAMPLE_ROWS = 1000


@dataclass(frozen=True)
class Log:
    """A log before anything is done to it: a lazy frame of any engine, and where its rows came from."""

    frame: nw.LazyFrame[Any]
    name: str
    """How messages call it: a file's name, a dataset's name, or "table"."""
    files: tuple[Path, ...] = ()
    rows: tuple[int, ...] = ()
    """Rows of each file, where known: to name the file of a bad row."""
    format: str = "table"
    items: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)

    def at(self, row: int) -> str:
        """Name a row of the whole log (from 0): its file, and its row in there, counted from 1 after the
        header."""
        for file, rows in zip(self.files, self.rows):
            if row < rows:
                return f"{file.name}: row {row + 1:,}"
            row -= rows
        return f"{self.name}: row {row + 1:,}"

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of each file."""
        return [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in self.files]


def find_files(sources: Sequence[str]) -> list[Path]:
    """Expand paths and globs, in order; a folder means all files of a table in it."""
    found: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and _by_name(p) is not None)
        else:
            matches = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not matches:
            raise EnsuiteError(
                f"{source}: no such file" if not path.is_dir() else f"{source}: no table in this folder"
            )
        found += matches
    return found


def read_files(sources: Sequence[str], config: PrepareConfig) -> Log:
    """Return the files as one log, in the order given; Parquet is scanned lazily, text is parsed here.

    Raises
    ------
    EnsuiteError
        For a missing or empty file, a file of another format than its name or ``--format`` says, or files
        whose columns differ.
    """
    files = find_files(sources)
    form: str = config.format
    if form == "guess":
        forms = {file.name: guess_format(file) for file in files}
        form = next(iter(forms.values()))
        other = next((name for name, f in forms.items() if f != form), None)
        if other is not None:
            raise EnsuiteError(
                f"{other} looks like {forms[other]}, {files[0].name} like {form}: give --format, or one "
                "at a time"
            )
    for file in files:
        check_content(file, form)
    name = files[0].name if len(files) == 1 else f"{len(files)} files ({files[0].name} ...)"
    if form == "parquet":
        return _scan_parquet(files, name)
    frames = [read_text(file, form, config) for file in files]
    for file, frame in zip(files, frames):
        if frame.columns != frames[0].columns:
            raise EnsuiteError(
                f"{file.name}: columns {', '.join(frame.columns)} differ from {files[0].name}'s: "
                f"{', '.join(frames[0].columns)}"
            )
    whole = frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")
    rows = tuple(frame.height for frame in frames)
    return Log(nw.from_native(whole.lazy()), name, tuple(files), rows, form)


def read_table(path: str, config: PrepareConfig | None = None) -> pl.DataFrame:
    """Read a whole side table (items, users) from one file."""
    log = read_files([path], config or PrepareConfig())
    return log.frame.collect("polars").to_native()


def _scan_parquet(files: Sequence[Path], name: str) -> Log:
    rows, first = [], None
    for file in files:
        try:
            scan = pl.scan_parquet(file)
            schema = scan.collect_schema()
            rows.append(scan.select(pl.len()).collect().item())
        except pl.exceptions.PolarsError as error:
            raise EnsuiteError(f"{file.name}: not readable as Parquet: {_first_line(error)}") from None
        first = first or schema
        if schema != first:
            raise EnsuiteError(
                f"{file.name}: columns or their types differ from {files[0].name}'s: {schema} against {first}"
            )
    if sum(rows) == 0:
        raise EnsuiteError(f"{name}: no events: the file has columns and no rows")
    return Log(nw.from_native(pl.scan_parquet(list(files))), name, tuple(files), tuple(rows), "parquet")


def guess_format(file: Path) -> str:
    """Say the form of a file by its extension, for .txt, .dat and unknown ones by its first lines."""
    known = _by_name(file)
    if known is not None:
        return known
    head = _head(file)
    if head.startswith(b"PAR1"):
        return "parquet"
    lines = [
        line
        for line in head.decode("utf-8", "replace").splitlines()[:-1] or [head.decode("utf-8", "replace")]
        if line.strip()
    ]
    if lines and lines[0].lstrip().startswith("{"):
        return "ndjson"
    if lines and all(re.fullmatch(r"\S+ \S+", line.strip()) for line in lines):
        return "pairs"
    if lines and all(re.fullmatch(r"\S+( \S+)*", line.strip()) for line in lines) and "," not in lines[0]:
        return "sequences"
    if lines and "\t" in lines[0]:
        return "tsv"
    if lines and ("," in lines[0] or "::" in lines[0]):
        return "csv"
    raise EnsuiteError(
        f"{file.name}: form not recognised; give --format csv, tsv, ndjson, parquet, sequences or pairs"
    )


def check_content(file: Path, form: str) -> None:
    """Refuse an empty file, and one whose first bytes are of another format."""
    head = _head(file)
    if not head.strip():
        raise EnsuiteError(f"{file.name}: the file is empty")
    what = next((text for magic, text in MAGIC.items() if head.startswith(magic)), None)
    if form == "parquet":
        if what != "Parquet":
            raise EnsuiteError(
                f"{file.name}: this is not Parquet{f' but {what}' if what else ''}; give --format, or "
                "another file"
            )
    elif what is not None or b"\0" in head:
        raise EnsuiteError(
            f"{file.name}: this is not {form} text but {what or 'binary data'}; give --format, or "
            "another file"
        )
    elif form == "ndjson" and not head.lstrip().startswith(b"{"):
        raise EnsuiteError(
            f"{file.name}: this is not NDJSON (one object a line); give --format, or another file"
        )
    elif form in ("csv", "tsv") and head.lstrip().startswith((b"{", b"[")):
        raise EnsuiteError(
            f"{file.name}: this is not {form.upper()} but JSON; give --format ndjson, or another file"
        )


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
        raise EnsuiteError(f"{file.name}: not readable as {form}: {_first_line(error)}") from None
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
        data, has_header=False, separator="\x1f", quote_char=None, new_columns=["line"], schema={"line": pl.String},
        encoding="utf8-lossy", truncate_ragged_lines=True,
    )  # fmt: skip
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
        raise EnsuiteError(f"{file.name}: cannot be read: {_first_line(error)}") from None


def title_column(table: pl.DataFrame) -> pl.DataFrame:
    """Rename the column that looks like a title to `title`, if there is one."""
    found = guess("title", table.columns)
    return table if found is None or "title" in table.columns else table.rename({found: "title"})


def _by_name(file: Path) -> str | None:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return EXTENSIONS.get(suffixes[-1]) if suffixes else None


def _head(file: Path, size: int = 8192) -> bytes:
    try:
        with pa.input_stream(str(file), compression=COMPRESSED.get(file.suffix)) as stream:
            return stream.read(size)
    except (OSError, pa.ArrowInvalid) as error:
        raise EnsuiteError(f"{file.name}: cannot be read: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
