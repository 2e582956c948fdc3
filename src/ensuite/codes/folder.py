"""The folder of a table of codes: written aside and renamed, every file with its checksum in card.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError

from ensuite.errors import EnsuiteError

FORMAT_VERSION = 1
KIND = "semantic ids"


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken: by anything, or with ``overwrite`` by anything but a table of codes."""
    if path.exists():
        ours = _kind(path) == KIND
        if not (ours and overwrite):
            remedy = "choose another --out, or --overwrite" if ours else "choose another --out"
            raise EnsuiteError(
                f"{path}: exists already{'' if ours else ' and is no table of codes'}; {remedy}"
            )


def write_folder(
    path: Path,
    card: Mapping[str, Any],
    files: Mapping[str, Callable[[Path], Any]],
    *,
    overwrite: bool,
) -> None:
    """Write each of ``files`` by its function, and a card with their checksums; nothing half-written stays.

    Raises
    ------
    EnsuiteError
        When ``path`` exists and is not to be overwritten or is no table of codes, or it cannot be written.
    """
    check_free(path, overwrite=overwrite)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    old = aside.with_suffix(".replaced")
    try:
        aside.mkdir(parents=True)
        for name, write in files.items():
            write(aside / name)
        full: dict[str, Any] = {"kind": KIND, "format_version": FORMAT_VERSION} | dict(card)
        full["files"] = {name: {"sha256": _sha256(aside / name)} for name in files}
        full = json.loads(json.dumps(full, default=str))
        full["checksum"] = _checksum(full)
        (aside / "card.json").write_text(json.dumps(full, indent=2) + "\n")
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise EnsuiteError(f"{path}: cannot be written: {why}; nothing was left behind") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_card(path: Path) -> dict[str, Any]:
    """Read card.json of a table of codes and check it and every file that it names."""
    if not path.is_dir():
        raise EnsuiteError(
            f"{path}: no such table of codes; make one with `ensuite codes build --out {path}`"
        )
    if _kind(path) != KIND:
        raise EnsuiteError(
            f"{path}: no table of codes: its card.json is missing, damaged or of something else"
        )
    card = json.loads((path / "card.json").read_text())
    version = card.get("format_version")
    if version != FORMAT_VERSION:
        raise EnsuiteError(
            f"{path}: format {version} of codes, this version of ensuite reads {FORMAT_VERSION}; build the "
            "table again, or install the version that wrote it"
        )
    if card.get("checksum") != _checksum(card):
        raise EnsuiteError(
            f"{path / 'card.json'}: edited since it was written (checksum differs); build the table again"
        )
    for name, want in card["files"].items():
        try:
            found = _sha256(path / name)
        except OSError:
            raise EnsuiteError(f"{path / name}: missing; build the table again") from None
        if found != want["sha256"]:
            raise EnsuiteError(
                f"{path / name}: edited or damaged since it was written (checksum differs); "
                "build the table again"
            )
    return card


def _kind(path: Path) -> str | None:
    try:
        return json.loads((path / "card.json").read_text())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(card: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in card.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
