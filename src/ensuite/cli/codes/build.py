"""``ensuite codes build``: from the items of a dataset to their codes."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ensuite.cli.codes.show import Working, say_counts, say_next, show
from ensuite.content import IMAGE_ENCODER
from ensuite.training.item_vectors import Source

if TYPE_CHECKING:
    import numpy as np

    from ensuite.data.dataset import Dataset

BUILD = """\
Encode the items' texts and images (what was encoded before is read from the cache), fit a tokeniser, write
the table of codes with the tokeniser beside it, and say how healthy the codes are.
"""


def main(argv: list[str]) -> None:
    """Run `ensuite codes build` with the arguments after its name."""
    from ensuite.cli.evaluate import pick_device
    from ensuite.codes.build import build_table
    from ensuite.codes.folder import check_free
    from ensuite.codes.health import compute_health
    from ensuite.codes.kinds import tokeniser_class
    from ensuite.data.dataset import Dataset

    args = parse_build(argv)
    check_free(args.out, overwrite=args.overwrite)
    dataset, device = Dataset.open(args.data), pick_device(args.device)
    with Working(not args.quiet) as working:
        source = Source(
            args.encoder, args.text, args.without_text, args.cache, args.images, args.image_encoder
        )
        found = source.read(dataset.items, str(args.data), device, working)
        vectors, fitted_on = found.vectors, found.has_content
        if args.fit_on == "train":
            fitted_on = fitted_on & _in_training(dataset)
        tokeniser = tokeniser_class(args.tokeniser)(args.settings, vectors.shape[1])
        table = build_table(
            vectors,
            found.item_ids,
            tokeniser,
            encoder=found.source,
            duplicates=args.duplicates,
            spare=args.spare,
            fitted_on=fitted_on,
            seed=args.seed,
            device=device,
            progress=working.fit(args.tokeniser),
        )
        table.save(args.out, tokeniser, overwrite=args.overwrite)
        working.busy("looking at the codes")
        health = compute_health(table, tokeniser, vectors)
    say_counts(found.counts)
    show(health, table)
    folder, data = shlex.quote(str(args.out)), shlex.quote(str(args.data))
    sizes = " + ".join(f"{size:,}" for size in table.level_sizes)
    say_next(
        f"{args.out}: codes of {table.n_items:,} items, {table.levels} levels of {sizes} codes",
        f"ensuite codes report {folder} --data {data} --out report/",
    )


def parse_build(argv: list[str]) -> Any:
    """Return the flags of ``ensuite codes build``: those of the chosen tokeniser are among them; defaults <
    preset < command line."""
    import pydantic

    from ensuite.cli.train import early
    from ensuite.codes.kinds import KINDS, tokeniser_class
    from ensuite.codes.table import Policy
    from ensuite.config import build_config, explain
    from ensuite.content.vectors import WithoutText
    from ensuite.errors import EnsuiteError, did_you_mean

    kind, preset = early(argv, "--tokeniser") or "rq-k-means", early(argv, "--preset")
    cls = tokeniser_class(kind)
    if preset is not None and preset not in cls.presets:
        known = f"; {did_you_mean(preset, cls.presets)}" if cls.presets else " at all"
        raise EnsuiteError(f"--preset {preset}: {kind} has no such preset{known}")
    settings: Any = build_config(cls.Config, cls.presets[preset] if preset else {}, f"preset {preset}")

    def field(type_: Any, text: str, **default: Any) -> tuple[Any, Any]:
        return Annotated[type_, tyro.conf.arg(help=text)], dataclasses.field(**default)

    fields = {
        "data": field(tyro.conf.Positional[Path], "The dataset folder, made by `ensuite prepare`."),
        "out": field(Path, "The folder to write."),
        "text": field(
            str | None,
            "What describes an item, with columns of the item table in braces; what an item lacks is left "
            "out.",
            default=None,
        ),
        "encoder": field(
            str,
            "minilm (in ensuite[text]), a folder or a Hugging Face name of a sentence encoder, or run:PATH "
            "for the item vectors of a trained run.",
            default="minilm",
        ),
        "images": field(
            str | None,
            "Path of an item's image, with columns of the item table in braces, such as "
            "photos/{item_id}.jpg; with --text too, an item has both vectors, side by side.",
            default=None,
        ),
        "image_encoder": field(
            str,
            "efficientnet-lite0 (in ensuite[image]), a folder or a Hugging Face name of a vision "
            "Transformer.",
            default=IMAGE_ENCODER,
        ),
        "without_text": field(
            WithoutText,
            "Items without any text or image: refuse, take their id as text, or a vector of zeros.",
            default="error",
        ),
        "tokeniser": field(Literal[tuple(KINDS)], "What makes codes of vectors.", default=kind),
        "preset": field(str | None, "Settings of a paper, such as paper of rq-vae.", default=preset),
        "duplicates": field(
            Policy,
            "Items with equal codes: one more level tells them apart (digit), they stay equal (shared), or "
            "all but one move to the nearest free code of the last level (reassign).",
            default="digit",
        ),
        "spare": field(
            int, "With digit: room beyond the largest group, for items that are appended.", default=16
        ),
        "fit_on": field(
            Literal["all", "train"],
            "Which items the tokeniser learns from: all, or those of the training events.",
            default="all",
        ),
        "seed": field(int, "Seed of everything that is drawn.", default=0),
        "cache": field(
            Path | None, "Folder of known vectors; default: the user's cache folder.", default=None
        ),
        "device": field(str | None, "cpu, cuda, ...; default: a GPU when there is one.", default=None),
        "overwrite": field(bool, "Replace the table in --out.", default=False),
        "quiet": field(bool, "No progress bar.", default=False),
        "settings": (Annotated[cls.Config, tyro.conf.arg(name="")], dataclasses.field(default=settings)),
    }
    arguments = dataclasses.make_dataclass(
        "BuildArguments",
        [(key, type_, default) for key, (type_, default) in fields.items()],
        kw_only=True,
        frozen=True,
    )
    try:
        return tyro.cli(
            tyro.conf.OmitArgPrefixes[arguments],  # type: ignore[valid-type, misc]
            args=argv,
            prog="ensuite codes build",
            description=BUILD,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except pydantic.ValidationError as error:
        raise EnsuiteError(explain(error, cls.Config, "ensuite codes build")) from None


def _in_training(dataset: Dataset) -> np.ndarray:
    """Return which items occur in the training events: [V] bool."""
    import numpy as np

    events = dataset.events("train")
    there = np.zeros(dataset.n_items + 1, bool)
    there[events.item_idx[events.rows()]] = True
    return there[1:]
