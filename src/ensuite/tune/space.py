"""What is searched: for each key of a recipe a range or a list of choices, built in or read from YAML.

    training.lr: {low: 0.0003, high: 0.01, log: true}
    model:
      dim: [32, 64, 128]
      dropout: {low: 0.0, high: 0.6, step: 0.1}

Keys are dotted or nested, as one likes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from ensuite.config import build_config, config, merge
from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.models.base import FittedModel, Model
from ensuite.training.config import RunConfig


@config
class Range:
    """Numbers between two ends, both included; whole numbers when both ends (and the step) are."""

    low: int | float
    """Smallest value."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Equal ratios are equally likely, not equal differences."""
    step: int | float | None = None
    """Only low, low + step, low + 2 step, ..."""

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low} lies above high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range starts above 0 and has no step")

    @property
    def whole(self) -> bool:
        """Whether the values are integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def holds(self, value: Any) -> bool:
        """Whether ``value`` can be drawn."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
            return False
        steps = (value - self.low) / self.step if self.step else 0
        return abs(steps - round(steps)) < 1e-9


Choices = tuple[Any, ...]
Space = dict[str, Range | Choices]
"""Keys are dotted: section.field."""

MODEL_FIELDS: Space = {
    "dim": (32, 64, 128, 256),
    "blocks": (1, 2, 3),
    "heads": (1, 2, 4),
    "dim_qk": (16, 32, 64),
    "dim_v": (16, 32, 64),
    "dropout": Range(low=0.0, high=0.6, step=0.1),
}
"""Searched in any trained model whose configuration has a field of that name."""

BY_MODEL: dict[str, Space] = {
    "popularity": {"model.last_days": (0.0, 1.0, 7.0, 30.0, 90.0, 365.0)},
    "recency": {},
    "markov": {
        "model.last": Range(low=1, high=5),
        "model.decay": Range(low=0.1, high=1.0, step=0.1),
        "model.steps": Range(low=1, high=5),
        "model.smoothing": Range(low=0.01, high=100.0, log=True),
    },
    "item-knn": {
        "model.similarity": ("cosine", "tfidf", "bm25"),
        "model.neighbours": Range(low=10, high=500, log=True),
        "model.half_life": (0.0, 1.0, 2.0, 5.0, 10.0, 30.0),
    },
    "content-knn": {"model.profile": ("mean", "last"), "model.max_length": (2, 5, 10, 50)},
    "personal-repeat": {"model.decay": Range(low=0.0, high=1.5, step=0.1)},
    "bert4rec": {"samples.mask_probability": Range(low=0.1, high=0.7, step=0.1)},
}
"""Beside the above: what is particular to one system."""


def built_in_space(cls: type[Model], config: RunConfig) -> Space:
    """Return what is worth searching in a model: learning rate, sizes and dropout by the names of its
    fields; the temperature where scores are cosines; and what is particular to it.

    A class attribute ``space``, shaped like the YAML, takes the place of all this.
    """
    own = getattr(cls, "space", None)
    if own is not None:
        return read_space(own, config, f"{cls.__name__}.space")
    space: Space = {}
    if not issubclass(cls, FittedModel):
        space["training.lr"] = Range(low=3e-4, high=1e-2, log=True)
        fields = {field.name for field in dataclasses.fields(cls.Config)}
        space |= {f"model.{name}": values for name, values in MODEL_FIELDS.items() if name in fields}
        if getattr(config.model, "similarity", "dot") == "cosine":
            space["objective.temperature"] = Range(low=0.02, high=0.5, log=True)
    space |= BY_MODEL.get(config.name, {})
    if not space:
        raise EnsuiteError(f"{config.name}: there is nothing to search in it; give a --space of your own")
    return space


def read_space(values: Mapping[str, Any], config: RunConfig, where: str) -> Space:
    """Check a space given as plain values: dotted or nested keys, each a list of choices or a range.

    Raises
    ------
    EnsuiteError
        For a key that the recipe does not know (nearest name offered), or a value that is neither list nor
        range.
    """
    space: Space = {}
    for key, value in _flatten(values):
        _check_key(key, config, where)
        if isinstance(value, Mapping):
            space[key] = build_config(Range, value, f"{where}: {key}")
        elif isinstance(value, list | tuple) and value:
            space[key] = tuple(value)
        else:
            raise EnsuiteError(f"{where}: {key} = {value!r}: a list of choices, or {{low: ..., high: ...}}")
    if not space:
        raise EnsuiteError(f"{where}: nothing to search is named there")
    return space


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and "." not in name and not {"low", "high"} & set(value)
        out += _flatten(value, f"{name}.") if nested else [(name, value)]
    return out


def _check_key(key: str, config: RunConfig, where: str) -> None:
    section, *path = key.split(".")
    if section not in config.sections:
        raise EnsuiteError(f"{where}: unknown key '{key}'; sections are {', '.join(config.sections)}")
    part = getattr(config, section)
    for field in path or [""]:  # a wrapper's base has settings of its own: model.encoder.dim
        known = [name.name for name in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
        if field not in known:
            raise EnsuiteError(f"{where}: unknown key '{key}'; {did_you_mean(field, known)}")
        part = getattr(part, field)


def defaults_inside(space: Space, config: RunConfig) -> dict[str, Any]:
    """Return the values that ``config`` has now, for the keys where the space holds them: the first point to
    try."""
    now = {key: attrgetter(key)(config) for key in space}
    return {
        key: now[key]
        for key, values in space.items()
        if (values.holds(now[key]) if isinstance(values, Range) else now[key] in values)
    }


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into the sections of a recipe.

    >>> nest({"model.dim": 64, "training.lr": 0.1})
    {'model': {'dim': 64}, 'training': {'lr': 0.1}}
    >>> nest({"model.encoder.dim": 64})
    {'model': {'encoder': {'dim': 64}}}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        out = merge(out, value)
    return out
