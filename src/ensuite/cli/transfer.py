"""``ensuite transfer``: use a trained run on a dataset that it has never seen."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """Make a run on another dataset of a trained one, its weights unchanged (zero-shot).

    The items are encoded by the encoder and the tokeniser of the run; no event of the new dataset is read.
    For systems that know items by their codes alone: recgpt, and tiger.

    ensuite transfer runs/recgpt --data data/ml --out runs/ml/recgpt

    ensuite transfer runs/recgpt --data data/own --out runs/own/recgpt --text "{name}. {maker}"
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The trained run."""
    data: Path
    """The dataset folder, made by `ensuite prepare` with a table of items."""
    out: Path
    """The run folder to write."""
    text: str | None = None
    """What describes an item, with columns of the item table in braces; default: those of title, name, brand,
    categories, genres that it has."""
    images: str | None = None
    """Path of an item's image, with columns in braces, where the run's codes are made of images; default: as
    in the run."""
    without_text: Literal["error", "id", "zero"] | None = None
    """Items without any text: refuse, take their id as text, or a vector of zeros; default: as the codes of
    the run were made."""
    encoder: str | None = None
    """Where the encoder is now, if its folder has moved; another one is refused."""
    codes: Path | None = None
    """Where the run's table of codes is now, if it has moved; another one is refused."""
    cache: Path | None = None
    """Folder of known vectors; default: the user's cache folder."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""
    overwrite: bool = False
    """Replace the run in --out."""
    quiet: bool = False
    """No progress bar."""


def main(argv: list[str]) -> None:
    """Run `ensuite transfer` with the arguments after its name."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite transfer", config=(tyro.conf.FlagCreatePairsOff,))
    from ensuite.cli.evaluate import pick_device
    from ensuite.codes.table import SemanticIdTable
    from ensuite.training.run import CODES
    from ensuite.training.transfer import transfer

    run = transfer(
        args.run,
        args.data,
        args.out,
        text=args.text,
        images=args.images,
        without_text=args.without_text,
        encoder=args.encoder,
        table=args.codes,
        cache=args.cache,
        device=pick_device(args.device),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    assert run.config.codes is not None
    table = SemanticIdTable.load(run.path / CODES)
    data, beside = shlex.quote(str(args.data)), shlex.quote(str(args.out.parent))
    sys.stdout.write(
        f"{run.path}: {table.n_items:,} items as {len(table.tuples()):,} different tuples of codes, of "
        f"{run.config.codes.text or run.config.codes.images!r}\n"
        "Next, beside the rule that repeats a user's last items and the one that knows texts alone:\n"
        f"  ensuite train recency --data {data} --out {beside}/recency\n"
        f"  ensuite train content-knn --data {data} --out {beside}/content-knn\n"
        f"  ensuite compare {beside}/* --exclude none --out report/\n"
    )
