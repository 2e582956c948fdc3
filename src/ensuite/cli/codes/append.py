"""``ensuite codes append``: codes for items that came later."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ensuite.cli.codes.show import Working, say_counts, say_next


@dataclass(frozen=True)
class AppendArguments:
    """Give new items codes, by the encoder and the tokeniser that made the table. Old codes stay as they are.

    ensuite codes append codes/beauty --items new.parquet
    """

    codes: Annotated[Path, tyro.conf.Positional]
    """The table, made by `ensuite codes build`."""
    items: Path
    """Table of the new items (CSV, Parquet, ...): item_id, and the columns of the template."""
    encoder: str | None = None
    """Where the encoder is now, if its folder has moved; another one is refused."""
    without_text: Literal["error", "id", "zero"] | None = None
    """New items without any text; default: as the table was built."""
    cache: Path | None = None
    """Folder of known vectors; default: the user's cache folder."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""
    out: Path | None = None
    """Write the longer table here; default: in place of the old one."""
    quiet: bool = False
    """No progress bar."""


def main(argv: list[str]) -> None:
    """Run `ensuite codes append` with the arguments after its name."""
    from ensuite.cli.evaluate import pick_device
    from ensuite.codes.table import TOKENISER, SemanticIdTable
    from ensuite.codes.tokeniser import load_tokeniser
    from ensuite.errors import EnsuiteError
    from ensuite.training.item_vectors import RUN
    from ensuite.training.new_items import append_items, read_new_items

    args = tyro.cli(
        AppendArguments, args=argv, prog="ensuite codes append", config=(tyro.conf.FlagCreatePairsOff,)
    )
    table = SemanticIdTable.load(args.codes)
    made = table.provenance["encoder"]
    if (made["name"] or "").startswith(RUN):
        raise EnsuiteError(
            f"{args.codes}: made of the item vectors of a run ({made['name']}), which new items do not have; "
            "build codes from text to append items"
        )
    tokeniser = load_tokeniser(args.codes / TOKENISER)
    items = read_new_items(args.items, table.item_ids)
    with Working(not args.quiet) as working:
        longer, found = append_items(
            table,
            tokeniser,
            items,
            str(args.items),
            cache=args.cache,
            encoder=args.encoder,
            without_text=args.without_text,
            device=pick_device(args.device),
            working=working,
        )
    out = args.out or args.codes
    longer.save(out, tokeniser, overwrite=args.out is None)
    say_counts(found.counts)
    say_next(
        f"{out}: {len(items):,} items appended, {longer.n_items:,} in all; no old code has changed",
        f"ensuite codes report {shlex.quote(str(out))}",
    )
