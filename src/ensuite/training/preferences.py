"""What users say they want, made ready for a training: beside the events, and as the samples of a mix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F

from ensuite.data.dataset import Dataset, Events
from ensuite.data.samples import Extra
from ensuite.data.stated import Stated
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.training.config import PreferencesConfig, RunConfig
from ensuite.training.materials import describing
from ensuite.training.progress import Display
from ensuite.training.users import training_view

if TYPE_CHECKING:
    from ensuite.preferences.axes import Axes
    from ensuite.preferences.schema import Preferences


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of what users want."""

    stated: Stated | None = None
    extra: Extra | None = None

    def beside(self, events: Events) -> Events:
        """Return the events with what is stated beside them."""
        return replace(events, stated=self.stated)


def check_preferences(config: RunConfig, dataset: Dataset) -> None:
    """Refuse what cannot be, before anything is written.

    Raises
    ------
    EnsuiteError
        When there is no file for a model that reads preferences, a file that is not right, or one for a model
        that reads none.
    """
    from ensuite.preferences.schema import read_preferences

    asked = config.preferences
    if asked is None:
        return
    reads = config.model.reads_preferences
    if reads and not asked.file:
        raise EnsuiteError(
            f"{config.name} reads preferences: give a file of them by --preferences.file, such as "
            "`ensuite preferences DATA --out preferences.parquet` writes (or train an ablation without: "
            "--model.inputs history)"
        )
    if not reads and (asked.file or asked.mix != "none"):
        raise EnsuiteError(f"this {config.name} reads no preferences; leave the section 'preferences' out")
    if reads:
        read_preferences(asked.file, dataset)


def gather_preferences(config: RunConfig, dataset: Dataset, model: Model, display: Display) -> Known:
    """Read the file of preferences, choose those that go with each event, and encode them with the model.

    Raises
    ------
    EnsuiteError
        When the file is not right, or a mix finds no samples.
    """
    asked = config.preferences
    if asked is None or not model.reads_preferences():
        return Known()
    from ensuite.content.encoders import load_encoder
    from ensuite.preferences.axes import Axes
    from ensuite.preferences.matching import build_space, choose
    from ensuite.preferences.schema import read_preferences

    preferences = read_preferences(asked.file, dataset)
    assert config.codes is not None
    with display.stages() as news:
        news.busy("matching preferences")
        encoder = load_encoder(model.config.encoder, str(next(model.parameters()).device))
        space = build_space(
            dataset,
            preferences,
            describing(config.codes, dataset.items, str(dataset.path)),
            encoder,
            progress=lambda done, total: news.update("texts", done, total),
        )
        offsets, items = np.asarray(dataset.offsets), np.asarray(dataset.item_idx, np.int64)
        user = np.repeat(np.arange(dataset.n_users), np.diff(offsets))
        index = np.arange(len(items)) - offsets[user]
        numbers = choose(preferences, user, index, items, asked.choice, space)
        taking_part = training_view(dataset, config).lengths > 0
        extra = _extra(asked, lambda: Axes(dataset, preferences, space, "train"), taking_part)
        news.busy("encoding preferences")
        return _encoded(preferences, numbers, extra, model)


def _encoded(preferences: Preferences, numbers: np.ndarray, extra: Extra | None, model: Model) -> Known:
    """Encode the texts that are used, and number them anew."""
    every = np.concatenate([numbers.ravel(), *([] if extra is None else [extra.numbers.ravel()])])
    used = np.unique(every[every > 0])
    if not len(used):
        raise EnsuiteError("no event of the dataset has preferences that were made before it")
    anew = np.zeros(len(preferences.texts) + 1, np.int64)
    anew[used] = np.arange(1, len(used) + 1)
    values = model.encode_preferences([preferences.text(n) for n in used.tolist()]).cpu()
    stated = Stated(anew[numbers], F.pad(values, (0, 0, 1, 0)))
    return Known(stated, None if extra is None else replace(extra, numbers=anew[extra.numbers]))


def _extra(asked: PreferencesConfig, axes: Callable[[], Axes], taking_part: np.ndarray) -> Extra | None:
    """Return the samples of the mix whose users are ``taking_part`` [U] in the training."""
    if asked.mix == "none":
        return None
    made = axes()
    parts: list[Extra] = []
    if asked.mix in ("pos", "neg", "pos-neg", "all"):
        questions = made.sentiment()
        if questions is None:
            raise EnsuiteError(
                f"preferences.mix = {asked.mix}: {made.dataset.path} has no ratings, which say what was "
                "disliked; prepare it with a column `rating`, or take fine or coarse"
            )
        parts += [questions.extra(wanted) for wanted in _signs(asked.mix)]
    parts += [made.steering(kind).extra() for kind in ("fine", "coarse") if asked.mix in (kind, "all")]
    names = ("user", "start", "end", "target", "numbers", "unwanted")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    kept = taking_part[joined["user"]]
    if not kept.any():
        raise EnsuiteError(f"preferences.mix = {asked.mix}: {asked.file} gives no such samples")
    return Extra(**{name: values[kept] for name, values in joined.items()})


def _signs(mix: str) -> tuple[bool, ...]:
    return {"pos": (True,), "neg": (False,)}.get(mix, (True, False))
