"""``ensuite train``: train a system on a dataset."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

USAGE = """\
usage: ensuite train MODEL --data DATASET --out RUN [--recipe RECIPE.yaml] [...]

MODEL is one of: {names}
`ensuite train MODEL --help` shows all settings with their defaults.

  ensuite train sasrec --data data/ml --out runs/sasrec
  ensuite train sasrec --data data/beauty --out runs/beauty --recipe recipes/sasrec/beauty.yaml --seed 2
  ensuite train sasrec --data data/ml --out runs/gsasrec --objective.loss gbce --objective.negatives 256
  ensuite train rearec --base hstu --data data/ml --out runs/rearec       # a wrapper around any retriever
  ensuite train ada-retrieval --from runs/sasrec --data data/ml --out runs/ada   # from trained weights
  ensuite train tiger --data data/ml --out runs/tiger           # makes codes of the items' texts first
  ensuite train sasrec --data data/ml --out runs/sasrec --resume          # after an interruption
  torchrun --nproc-per-node 2 -m ensuite train sasrec --data data/ml --out runs/two
"""


def main(argv: list[str]) -> None:
    """Parse the command line of one model (its settings are flags of their own) and train it."""
    from ensuite.models.registry import model_names

    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE.format(names=", ".join(model_names())))
        return
    name, rest = argv[0], argv[1:]
    args = parse(name, rest)
    from ensuite.config import config_dict
    from ensuite.training.config import SECTIONS
    from ensuite.training.loop import train

    sections = {
        section: config_dict(getattr(args, section)) for section in SECTIONS if hasattr(args, section)
    }
    run = train(
        name,
        args.data,
        args.out,
        recipe=sections | {"seed": args.seed},
        start_from=args.start_from,
        resume=args.resume,
        overwrite=args.overwrite,
        trackers=args.trackers,
        progress=not args.quiet,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        best = run.card.get("training", {})
        metric = run.config.training.metric
        value = best.get(f"best_{metric}")
        said = f"validation {metric} {value:.4f}, " if value is not None else ""
        sys.stdout.write(
            f"{run.path}: {said}{run.card['parameters']:,} parameters, {run.card['train_seconds']:,.1f} s\n"
            f"Next: ensuite evaluate {run.path}    or    ensuite compare {run.path.parent}/* --out report/\n"
        )


def parse(name: str, argv: list[str]) -> Any:
    """Return the parsed flags of ``ensuite train NAME``: defaults < the model's own < recipe < command
    line."""
    import pydantic
    import tyro

    from ensuite.config import explain, merge
    from ensuite.data.samples import SamplesConfig
    from ensuite.errors import EnsuiteError
    from ensuite.objectives import ObjectiveConfig
    from ensuite.training.config import (
        CodesConfig,
        PreferencesConfig,
        TrainingConfig,
        read_recipe,
        resolve,
    )
    from ensuite.training.start import start_values

    recipe, resuming = early(argv, "--recipe"), early(argv, "--out") if "--resume" in argv else None
    if resuming and (Path(resuming) / "config.yaml").exists():
        recipe = str(Path(resuming) / "config.yaml")
    values, where = read_recipe(recipe)
    argv = [
        word.replace("--base", "--model.base", 1) if word.split("=")[0] == "--base" else word for word in argv
    ]
    base = early(argv, "--model.base")  # it decides which flags there are
    values = merge(values, {"model": {"base": base}}) if base else values
    form = early(argv, "--model.architecture")  # it decides which samples are the default
    values = merge(values, {"model": {"architecture": form}}) if form else values
    source = early(argv, "--from")
    if source and not resuming:
        values = merge(start_values(name, Path(source), values), values)
    cls, config = resolve(name, values, where=where)

    def field(kind: Any, text: str, name: str | None = None, **default: Any) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(name=name, help=text)], dataclasses.field(**default)

    fields = {
        "data": field(Path, "The dataset folder, made by `ensuite prepare`."),
        "out": field(Path, "The run folder to write."),
        "recipe": field(
            Path | None, "YAML file with sections model, objective, samples, training.", default=None
        ),
        "seed": field(int, "Seed of the weights, the order of samples and the dropout.", default=config.seed),
        "start_from": field(
            Path | None,
            "A run of the same system, or of a wrapper's base, whose best weights training starts from.",
            name="from",
            default=None,
        ),
        "resume": field(bool, "Go on with an interrupted run in --out.", default=False),
        "overwrite": field(bool, "Replace the run in --out.", default=False),
        "quiet": field(bool, "No progress bar.", default=False),
        "trackers": field(
            tuple[Literal["tensorboard", "mlflow", "wandb"], ...],
            "Also log there; metrics.jsonl is always written.",
            default=(),
        ),
        "model": (type(config.model), dataclasses.field(default=config.model)),
        "objective": (ObjectiveConfig, dataclasses.field(default=config.objective)),
        "samples": (SamplesConfig, dataclasses.field(default=config.samples)),
        "training": (TrainingConfig, dataclasses.field(default=config.training)),
    }
    if config.codes is not None:
        fields["codes"] = (CodesConfig, dataclasses.field(default=config.codes))
    if config.preferences is not None:
        fields["preferences"] = (PreferencesConfig, dataclasses.field(default=config.preferences))
    arguments = dataclasses.make_dataclass(
        "TrainArguments",
        [(key, kind, default) for key, (kind, default) in fields.items()],
        kw_only=True,
        frozen=True,
    )
    try:
        return tyro.cli(arguments, args=argv, prog=f"ensuite train {name}", description=cls.summary)
    except pydantic.ValidationError as error:
        raise EnsuiteError(explain(error, arguments, "command line")) from None


def early(argv: list[str], flag: str) -> str | None:
    """Find one flag's value before the parser is built: the recipe's values are the defaults that help
    shows."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None
