"""``ensuite codes``: give items a few tokens each, see how good they are, add new items."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = ("build", "report", "append")

USAGE = """\
usage: ensuite codes build DATA --out CODES --text TEMPLATE [--tokeniser KIND] [...]
       ensuite codes report CODES [--data DATA] [--out FOLDER]
       ensuite codes append CODES --items NEW.parquet

Semantic ids: each item becomes a few codes made of its content, which generative recommenders read and write.

  ensuite codes build data/beauty --out codes/beauty --text "{title}. {brand}. {categories}"
  ensuite codes build data/beauty --out codes/vae --text "{title}" --tokeniser rq-vae --levels 3 --size 256
  ensuite codes build data/beauty --out codes/sasrec --encoder run:runs/sasrec   # of a trained model
  ensuite codes report codes/beauty --data data/beauty --out report/
  ensuite codes append codes/beauty --items new.parquet

`ensuite codes build --tokeniser KIND --help` shows the settings of one tokeniser:
"""


def main(argv: list[str]) -> None:
    """Run one of the three."""
    from ensuite.errors import EnsuiteError, did_you_mean

    if not argv or argv[0] in ("-h", "--help"):
        from ensuite.codes.kinds import KINDS, tokeniser_class

        kinds = "".join(f"  {kind:<12}{tokeniser_class(kind).summary}\n" for kind in KINDS)
        sys.stdout.write(USAGE + kinds)
    elif argv[0] not in COMMANDS:
        raise EnsuiteError(f"unknown command 'codes {argv[0]}'; {did_you_mean(argv[0], COMMANDS)}")
    else:
        import_module(f"ensuite.cli.codes.{argv[0]}").main(argv[1:])
