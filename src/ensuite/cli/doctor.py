"""``ensuite doctor``: is everything here that is needed, and is it whole?"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import tyro

Verdict = tuple[Literal["ok", "--", "!!"], str]
"""ok: fine; --: not there, and not needed; !!: wrong. With a sentence."""
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)([^;]*)(?:;.*extra\s*==\s*[\"']([^\"']+)[\"'])?")
LOW_SPACE = 2 << 30


@dataclass(frozen=True)
class Arguments:
    """Check the installation and, file by file, any dataset and run folders given; a line for each finding.

    The exit status is 2 when something is wrong (!!); what is only missing (--) is not.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Dataset folders (all files are hashed again) and run folders (weights are loaded)."""


def main(argv: list[str]) -> None:
    """Run `ensuite doctor` with the arguments after its name."""
    arguments = tyro.cli(Arguments, args=argv, prog="ensuite doctor")
    wrong = 0
    for verdict, text in findings(arguments.paths):
        colour = {"ok": "32", "--": "33", "!!": "31"}[verdict]
        mark = f"\033[{colour}m{verdict}\033[0m" if sys.stdout.isatty() else verdict
        sys.stdout.write(f"{mark}  {text}\n")
        sys.stdout.flush()
        wrong += verdict == "!!"
    if wrong:
        sys.stderr.write(f"{wrong} problem{'s' if wrong > 1 else ''} found\n")
        raise SystemExit(2)


def findings(paths: tuple[Path, ...]) -> Iterator[Verdict]:
    """Yield a verdict for everything that is checked."""
    version = platform.python_version()
    yield (
        ("ok" if sys.version_info >= (3, 11) else "!!"),
        f"Python {version} on {platform.platform(terse=True)}; 3.11 or later",
    )
    yield from _torch()
    yield from _packages()
    yield from _systems()
    free = shutil.disk_usage(Path.cwd()).free
    yield ("ok" if free > LOW_SPACE else "!!"), f"disk: {free / (1 << 30):,.1f} GiB free here"
    for path in paths:
        yield from _folder(path)


def _torch() -> Iterator[Verdict]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "ok", f"torch {torch.__version__}, {torch.get_num_threads()} threads on {cores} cores"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(number)
            yield "ok", f"GPU {number}: {device.name}, {device.total_memory / (1 << 30):,.0f} GiB"
    else:
        yield "--", "GPU: none found; everything runs on the CPU"


def _packages() -> Iterator[Verdict]:
    """Compare what the installed distribution asks for with what is there; extras one line each."""
    groups: dict[str, list[str]] = {}
    for line in metadata.requires("ensuite") or []:
        found = REQUIREMENT.match(line)
        if found:
            groups.setdefault(found[3] or "", []).append(found[1] + found[2].strip())
    if not groups:
        yield "!!", "ensuite is not installed as a package: its extras are not known; pip install -e ."
    for extra, requirements in sorted(groups.items()):
        good, bad = _check(requirements)
        if not extra:
            yield (
                ("!!", f"missing: {', '.join(bad)}; pip install ensuite")
                if bad
                else ("ok", f"core packages: {len(good)}, all there")
            )
        elif bad:
            yield "--", f"extra {extra}: {', '.join(bad)} not there; pip install 'ensuite[{extra}]'"
        else:
            yield "ok", f"extra {extra}: {', '.join(good)}"


def _check(requirements: list[str]) -> tuple[list[str], list[str]]:
    """Return what is installed, with versions, and what is missing or too old."""
    from packaging.requirements import Requirement

    good, bad = [], []
    for text in requirements:
        requirement = Requirement(text)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            bad.append(text)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good.append(f"{requirement.name} {version}")
        else:
            bad.append(f"{text} (here: {version})")
    return good, bad


def _systems() -> Iterator[Verdict]:
    from ensuite.errors import EnsuiteError
    from ensuite.models.registry import load_model, model_names

    good = []
    for name in model_names():
        try:
            load_model(name)
            good.append(name)
        except EnsuiteError as error:
            yield "!!", str(error)
    yield ("ok" if good else "!!"), f"systems: {', '.join(good) or 'none registered; pip install -e . again'}"


def _folder(path: Path) -> Iterator[Verdict]:
    from ensuite.data.dataset import Dataset
    from ensuite.data.leakage import audit
    from ensuite.errors import EnsuiteError

    if not path.is_dir():
        yield "!!", f"{path}: no such folder"
        return
    if (path / "config.yaml").exists() or (path / "model.safetensors").exists():
        yield from _run(path)
        return
    try:
        dataset = Dataset.open(path, verify=True)
        files = dataset.card["files"].values()
        size = sum(file["bytes"] for file in files) / (1 << 20)
        yield "ok", f"{path}: dataset, {len(files)} files ({size:,.1f} MiB) as they were written; {dataset!r}"
        audit(dataset)
        yield "ok", f"{path}: no leak found between train, valid and test"
    except EnsuiteError as error:
        yield "!!", str(error)


def _run(path: Path) -> Iterator[Verdict]:
    from ensuite.errors import EnsuiteError
    from ensuite.training.run import load_run

    try:
        run = load_run(path)
        if run.items.height != run.model.n_items:
            raise EnsuiteError(
                f"{path / 'items.parquet'}: {run.items.height:,} rows for {run.model.n_items:,} items"
            )
    except FileNotFoundError as error:
        yield "!!", f"{error.filename or path}: missing; train the run again"
        return
    except EnsuiteError as error:
        yield "!!", str(error)
        return
    parameters = run.card.get("parameters", 0)
    yield (
        "ok",
        f"{path}: run of {run.config.name}, {run.model.n_items:,} items, {parameters:,} parameters; "
        "loads and can serve",
    )
    try:
        yield "ok", f"{path}: its dataset is there and the same: {run.dataset().path}"
    except EnsuiteError as error:
        yield "--", f"{path}: serves, but cannot be evaluated: {error}"
