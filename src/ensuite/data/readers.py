"""Files of a log, in any form we know, as one lazy frame.

Tables (CSV, TSV, NDJSON, Parquet) are found by extension, else by content; the two text formats of the
benchmarks (`sequences`, `pairs`) hold an order and no times. .gz, .zst, .bz2 and .lz4 are unpacked on the
way.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from ensuite.data.columns import guess
from ensuite.data.integrity import sha256
from ensuite.data.options import PrepareConfig
from ensuite.data.text import COMPRESSED, first_line, read_head, read_text
from ensuite.errors import EnsuiteError

EXTENSIONS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".inter": "tsv",
    ".json": "ndjson",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
    ".pq": "parquet",
}
MAGIC = {
    b"PAR1": "Parquet",
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG image",
    b"%PDF": "PDF",
    b"ARROW1": "Arrow IPC",
}


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
        """Name a row of the whole log (from 0): its file, and its row there, from 1 after the header."""
        for file, rows in zip(self.files, self.rows):
            if row < rows:
                return f"{file.name}: row {row + 1:,}"
            row -= rows
        return f"{self.name}: row {row + 1:,}"

    def fingerprint(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of each file."""
        return file_hashes([str(file) for file in self.files])


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


def file_hashes(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file: what the card says of a source."""
    files = [Path(path) for path in paths]
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256(f)} for f in files]


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
            raise EnsuiteError(f"{file.name}: not readable as Parquet: {first_line(error)}") from None
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
    head = read_head(file)
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
    head = read_head(file)
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


def title_column(table: pl.DataFrame) -> pl.DataFrame:
    """Rename the column that looks like a title to `title`, if there is one."""
    found = guess("title", table.columns)
    return table if found is None or "title" in table.columns else table.rename({found: "title"})


def _by_name(file: Path) -> str | None:
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return EXTENSIONS.get(suffixes[-1]) if suffixes else None
