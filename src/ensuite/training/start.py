"""Starting from another run's weights: `--from`, and the first stage of a system that is trained in two."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ensuite.config import read_yaml
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.models.registry import load_model
from ensuite.training.config import RunConfig
from ensuite.training.run import CODES, read_card, read_tensors

FIRST_STAGE = "base"
"""The folder, inside a run, of the run that its first stage is."""

log = logging.getLogger(__name__)


def start_values(name: str, source: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe that the run ``source`` implies for system ``name``; it is laid under ``given``.

    Raises
    ------
    EnsuiteError
        When that system cannot start from that run.
    """
    read_card(source)
    values = read_yaml(source / "config.yaml")
    section = values.get("model")
    if not isinstance(section, Mapping) or "name" not in section:
        raise EnsuiteError(f"{source / 'config.yaml'}: no model is named there; the file is damaged")
    if section["name"] == name:
        codes = values.get("codes")  # its weights know the codes that it learned from
        known = {} if codes is None else {"codes": codes | {"table": codes["table"] or str(source / CODES)}}
        return {"model": dict(section)} | known
    settings = load_model(name).settings_from(section)
    if settings is None:
        raise EnsuiteError(_cannot(source, section["name"], name))
    model = given.get("model") or {}
    for key, value in settings.items():
        if not isinstance(value, Mapping) and model.get(key, value) != value:
            raise EnsuiteError(
                f"{source}: is a run of {section['name']}, but {key} = {model[key]!r} was asked for; "
                "leave one of them out"
            )
    return {"model": dict(settings)}


def start(model: Model, config: RunConfig, source: Path, dataset: Dataset) -> dict[str, Any]:
    """Put the best weights of the run ``source`` into ``model``; return what the card says of it.

    A run of the same system gives what agrees in name and shape, and the rest stays fresh; a part of
    ``model`` (a wrapper's base) takes all its weights from a run of the system that it is.

    Raises
    ------
    EnsuiteError
        When the run is of other data or of a system that does not fit, or has no weights.
    """
    card = read_card(source)
    if card["data"]["fingerprint"] != dataset.fingerprint:
        raise EnsuiteError(
            f"{source}: was trained on other data than {dataset.path}, whose users and items have other "
            "numbers; start from a run on the same dataset"
        )
    part = model if card["model"] == config.name else model.part_from(card["model"])
    if part is None:
        raise EnsuiteError(_cannot(source, card["model"], config.name))
    tensors, _ = read_tensors(
        source / "model.safetensors", missing="no weights yet: training has not reached a validation"
    )
    parameters = {name: tuple(value.shape) for name, value in part.named_parameters()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    fresh = [name for name, shape in parameters.items() if given.get(name) != shape]
    if len(fresh) == len(parameters) or (fresh and part is not model):
        name = fresh[0]
        raise EnsuiteError(
            f"{source}: its weights do not fit: {name} is {given.get(name, 'missing')} there and "
            f"{parameters[name]} here; leave the encoder's settings out, they are then those of that run"
        )
    if fresh:
        log.warning("%s: these weights differ in name or shape and start fresh: %s", source, ", ".join(fresh))
    part.load_state_dict({name: t for name, t in tensors.items() if name not in fresh}, strict=False)
    return {"run": str(source.resolve()), "model": card["model"], "fresh": fresh}


def _cannot(source: Path, its: str, name: str) -> str:
    return f"{source}: is a run of {its}, from which {name} cannot start"
