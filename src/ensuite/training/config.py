"""What a training run is made of: the model's own configuration and three shared ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from ensuite.config import build_config, config, config_dict, merge, read_yaml
from ensuite.content import IMAGE_ENCODER
from ensuite.data.samples import SamplesConfig
from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.models.base import Model
from ensuite.models.registry import load_model
from ensuite.objectives import ObjectiveConfig

T = TypeVar("T")

SECTIONS = ("model", "objective", "samples", "training", "codes", "preferences")
"""The last two are there for systems that read what they hold."""


@config
class TrainingConfig:
    """The optimiser, its schedule, and when to stop."""

    epochs: int = 200
    """Most passes over the training samples; early stopping usually ends before."""
    batch_size: int = 128
    """Sequences in an optimiser step, over all processes."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    lr: float = 1e-3
    """Adam's learning rate."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); never on biases, norms and position tables."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Adam's decay rates of the first and second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or falling to 0 at the last epoch."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 = no clipping."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """bf16 computes matrix products in bfloat16; weights and losses stay in float32. tf32 rounds the factors
    of matrix products to 10 bits where a GPU gains by it, and nothing elsewhere."""
    compile: bool = False
    """Compile the encoder with torch.compile (the first steps then take a minute)."""
    validate_every: int = 1
    """Epochs between validations."""
    metric: str = "ndcg@10"
    """Validation metric that picks the best weights and stops early."""
    patience: int = 10
    """Validations without a better metric before training stops; 0 = never."""
    user_share: float = 1.0
    """Train, and validate, on a fixed random share of the users: what a system makes of little data, measured
    on the same test cases as others."""
    validation_users: int = 0
    """Validate on a fixed sample of so many users; 0 = all."""
    max_minutes: float = 0.0
    """Stop after so many minutes of training, keeping the best weights; 0 = no limit."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch (there is one after every epoch)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if not 0 < self.user_share <= 1:
            raise ValueError(f"user_share = {self.user_share}: a share above 0, at most 1")
        if self.lr <= 0 or self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError("lr must be positive, weight_decay and clip_norm at least 0")


@config
class CodesConfig:
    """Where the codes of the items come from, for systems that read them: a table that is there, or one made
    in the run's folder before the training, as `ensuite codes build` makes it."""

    table: str = ""
    """A folder of `ensuite codes build`; empty: make a table by what follows."""
    text: str = ""
    """What describes an item, with columns of the item table in braces; empty, and no images: those of title,
    name, brand, categories, genres that it has."""
    encoder: str = "minilm"
    """minilm, a folder or a Hugging Face name of a sentence encoder, or run:PATH for the item vectors of a
    trained run."""
    images: str = ""
    """Path of an item's image, with columns of the item table in braces, such as photos/{item_id}.jpg; read
    beside the text where one is given, alone where none is."""
    image_encoder: str = IMAGE_ENCODER
    """efficientnet-lite0, a folder or a Hugging Face name of a vision Transformer."""
    without_text: Literal["error", "id", "zero"] = "error"
    """Items without any text: refuse, take their id as text, or a vector of zeros."""
    tokeniser: str = "rq-k-means"
    """What makes codes of vectors (`ensuite codes build --help` lists them)."""
    settings: dict[str, bool | int | float | str | tuple[int, ...]] = Field(default_factory=dict)
    """Settings of the tokeniser that differ from its defaults, such as levels and size."""
    duplicates: Literal["digit", "shared", "reassign"] = "digit"
    """Items with equal codes: one more level tells them apart, they stay equal, or all but one move."""
    fit_on: Literal["all", "train"] = "all"
    """Which items the tokeniser learns from: all, or those of the training events."""
    category: str = ""
    """For systems that read categories: the item column that holds them, as a value or a path whose end
    counts; empty: categories, category or genres. Items for which it says nothing are put into clusters."""


@config
class PreferencesConfig:
    """What users say they want, for systems that read it; made by `ensuite preferences`."""

    file: str = ""
    """The file of preferences."""
    choice: Literal["matched", "last", "all"] = "matched"
    """Which of a step's preferences are read: the one that fits the next item best (the paper's oracle, in
    training and validation), the last one, or all."""
    mix: Literal["none", "pos", "neg", "pos-neg", "fine", "coarse", "all"] = "none"
    """Samples beside the log's: preferences alone with what is to come (pos) or must not (neg), histories of
    others with the preference for an item near to theirs (fine) or far from it (coarse)."""


@dataclass(frozen=True)
class RunConfig:
    """The resolved configuration of a run, as `config.yaml` holds it."""

    name: str
    model: Any
    objective: ObjectiveConfig
    samples: SamplesConfig
    training: TrainingConfig
    seed: int
    codes: CodesConfig | None = None
    """None: the system reads no codes."""
    preferences: PreferencesConfig | None = None
    """None: the system reads no preferences."""

    @property
    def sections(self) -> tuple[str, ...]:
        """The names of its sections."""
        return tuple(name for name in SECTIONS if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, `model.name` included."""
        return {
            "model": {"name": self.name} | config_dict(self.model),
            **{section: config_dict(getattr(self, section)) for section in self.sections[1:]},
            "seed": self.seed,
        }


def resolve(
    name: str, values: Mapping[str, Any], seed: int = 1, where: str = "recipe"
) -> tuple[type[Model], RunConfig]:
    """Lay ``values`` (its sections are `SECTIONS`) over the model's defaults and check everything.

    Raises
    ------
    EnsuiteError
        For an unknown model, section or key (nearest name offered), a wrong value, or samples the model
        cannot learn from.
    """
    cls = load_model(name)
    values = dict(values)
    seed = values.pop("seed", seed)
    read = {"codes": bool(cls.reads), "preferences": "preferences" in cls.reads}
    sections = [section for section in SECTIONS if read.get(section, True)]
    for section in values:
        if not read.get(section, True):
            raise EnsuiteError(f"{where}: {name} reads no {section}; leave the section '{section}' out")
        if section not in sections:
            raise EnsuiteError(f"{where}: unknown key '{section}'; {did_you_mean(section, sections)}")
        if not isinstance(values[section], Mapping):
            raise EnsuiteError(f"{where}: '{section}' must hold keys and values, not {values[section]!r}")
    full = merge(cls.defaults_for(values.get("model", {})), values)
    model = dict(full.get("model", {}))
    named = model.pop("name", name)
    if named != name:
        raise EnsuiteError(f"{where}: is for model '{named}', not '{name}'")
    samples = dict(full.get("samples", {}))
    if cls.samples:
        kind = samples.setdefault("kind", cls.samples[0])
        if kind not in cls.samples:
            raise EnsuiteError(
                f"{where}: {name} does not learn from '{kind}' samples; "
                f"{did_you_mean(str(kind), cls.samples)}"
            )

    def build(kind: type[T], section: str) -> T | None:
        return build_config(kind, full.get(section, {}), f"{where}: {section}") if read[section] else None

    run = RunConfig(
        name=name,
        model=build_config(cls.config_for(model), model, f"{where}: model"),
        objective=build_config(ObjectiveConfig, full.get("objective", {}), f"{where}: objective"),
        samples=build_config(SamplesConfig, samples, f"{where}: samples"),
        training=build_config(TrainingConfig, full.get("training", {}), f"{where}: training"),
        seed=int(seed),
        codes=build(CodesConfig, "codes"),
        preferences=build(PreferencesConfig, "preferences"),
    )
    return cls, run


def read_recipe(recipe: Mapping[str, Any] | str | Path | None) -> tuple[dict[str, Any], str]:
    """Return a recipe's values and the name that error messages give it."""
    if recipe is None:
        return {}, "configuration"
    if isinstance(recipe, Mapping):
        return dict(recipe), "recipe"
    return read_yaml(Path(recipe)), str(recipe)
