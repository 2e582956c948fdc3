"""``ensuite codes report``: how healthy are the codes?"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ensuite.cli.codes.show import Working, show, to_svg
from ensuite.training.item_vectors import vectors_of_table


@dataclass(frozen=True)
class ReportArguments:
    """See how healthy a table of codes is: usage and entropy of each level, collisions, and with the data
    also what the codes keep of the vectors and of neighbourhoods.

    ensuite codes report codes/beauty
    ensuite codes report codes/beauty --data data/beauty --out report/
    """

    codes: Annotated[Path, tyro.conf.Positional]
    """The table, made by `ensuite codes build`."""
    data: Path | None = None
    """The dataset that it was built from: its texts are read (encoded ones from the cache) and compared."""
    encoder: str | None = None
    """Where the encoder or the run is now, if its folder has moved; another one is refused."""
    out: Path | None = None
    """Folder for codes.svg and codes.json."""
    cache: Path | None = None
    """Folder of known vectors; default: the user's cache folder."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""
    json: bool = False
    """Print JSON, and nothing else, on standard output."""


def main(argv: list[str]) -> None:
    """Run `ensuite codes report` with the arguments after its name."""
    from ensuite.cli.evaluate import pick_device, write_text
    from ensuite.codes.health import compute_health
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser
    from ensuite.data.dataset import Dataset

    args = tyro.cli(
        ReportArguments, args=argv, prog="ensuite codes report", config=(tyro.conf.FlagCreatePairsOff,)
    )
    table = SemanticIdTable.load(args.codes)
    if args.data is None:
        health = compute_health(table)
    else:
        items = Dataset.open(args.data).items
        table.check_items(items["item_id"].to_list(), str(args.data))
        with Working(not args.json) as working:
            found = vectors_of_table(
                table,
                items,
                str(args.data),
                pick_device(args.device),
                working,
                cache=args.cache,
                encoder=args.encoder,
            )
            vectors = found.vectors
            working.busy("looking at the codes")
            tokeniser = load_tokeniser(args.codes / TOKENISER)
            first = dataclasses.replace(
                table, codes=table.codes[: len(vectors) + 1], item_ids=table.item_ids[: len(vectors)]
            )  # without items appended since
            health = compute_health(first, tokeniser, vectors)
    plain = json.dumps({"codes": str(args.codes), **health.to_dict()}, indent=2) + "\n"
    if args.out is not None:
        write_text(args.out / "codes.json", plain)
        write_text(args.out / "codes.svg", to_svg(health, f"Codes of {args.codes.name}"))
    if args.json:
        sys.stdout.write(plain)
        return
    show(health, table)
    if args.out is not None:
        sys.stdout.write(f"Written: {args.out / 'codes.svg'}, {args.out / 'codes.json'}\n")
    elif args.data is None:
        sys.stdout.write("With --data DATA also: what the codes keep of vectors and neighbourhoods.\n")
