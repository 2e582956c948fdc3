"""Is a dataset folder what was written? Sizes at every opening, checksums where it may have changed."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensuite.errors import EnsuiteError


def check_files(path: Path, files: Mapping[str, Mapping[str, Any]], verify: bool) -> None:
    """Refuse a folder with a missing, truncated or edited file.

    Hashing is linear in the data, opening must not be: a stamp (in the user's cache, so that the folder holds
    data only) remembers size and modification time of every file at the last full check; only what has
    changed since is hashed.
    """
    seen: dict[str, list[int]] = {}
    for name, want in files.items():
        try:
            seen[name] = size_and_time(path / name)
        except FileNotFoundError:
            raise EnsuiteError(f"{path / name}: missing; prepare the dataset again") from None
        if seen[name][0] != want["bytes"]:
            raise EnsuiteError(
                f"{path / name}: truncated or edited: {seen[name][0]:,} bytes, {want['bytes']:,} were "
                "written; prepare the dataset again"
            )
    try:
        known = {} if verify else json.loads(_stamp(path).read_text())
    except (OSError, ValueError):
        known = {}
    if known == seen:
        return
    for name, want in files.items():
        if known.get(name) != seen[name] and sha256(path / name) != want["sha256"]:
            raise EnsuiteError(
                f"{path / name}: edited since it was written (checksum differs); prepare the dataset again"
            )
    remember(path, seen)


def size_and_time(file: Path) -> list[int]:
    """Return what changes when a file does: bytes, modification time (ns), inode."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def cache_folder() -> Path:
    """Return where what can be computed again is kept: the environment's ``ENSUITE_CACHE``, or a folder in
    the user's own cache."""
    return Path(os.environ.get("ENSUITE_CACHE") or Path.home() / ".cache" / "ensuite")


def _stamp(path: Path) -> Path:
    return (
        cache_folder() / "verified" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
    )


def remember(path: Path, seen: Mapping[str, list[int]]) -> None:
    """Note that the files of ``path``, as ``seen`` by `size_and_time`, hold what was written."""
    try:
        stamp = _stamp(path)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        aside = stamp.with_suffix(f".{uuid.uuid4().hex[:8]}")
        aside.write_text(json.dumps(seen))
        os.replace(aside, stamp)
    except (OSError, RuntimeError):
        pass  # without a cache the folder is hashed at every opening


def card_checksum(card: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a card without its own `checksum`."""
    rest = {key: value for key, value in card.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
