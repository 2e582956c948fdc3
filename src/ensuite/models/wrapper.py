"""Systems that are built around another retriever's encoder, which the setting ``base`` names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from ensuite.config import config, merge
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model, Retriever
from ensuite.models.registry import load_model, model_names
from ensuite.objectives import Objective


@config
class WrapperConfig:
    """What every wrapper's configuration begins with."""

    base: str = "sasrec"
    """The system whose encoder is wrapped, by its registered name."""
    encoder: Any = None
    """The settings of that system (`ensuite models BASE` lists them)."""


class Wrapper(Retriever):
    """A retriever around the retriever ``self.base``; it has the base's items and window.

    Class attributes
    ----------------
    needs
        The protocol that a base must satisfy, `Stepwise` or `FromVectors`.
    """

    Config: ClassVar[type] = WrapperConfig
    needs: ClassVar[type]

    def __init__(self, config: Any, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        self.base: Any = self.base_class(config.base)(config.encoder, n_items, objective)  # type: ignore[call-arg]

    @classmethod
    def base_class(cls, name: str) -> type[Retriever]:
        """Return the class registered as ``name``.

        Raises
        ------
        EnsuiteError
            When it is unknown, or no retriever, or one that cannot be wrapped so.
        """
        base = load_model(name)
        if issubclass(base, Retriever) and issubclass(base, cls.needs):
            return base
        fit = [other for other in model_names() if _fits(cls, other)]
        why = "cannot be wrapped so" if issubclass(base, Retriever) else "is no retriever"
        raise EnsuiteError(f"base = {name!r}: {why}; a base can be {', '.join(fit)}")

    @classmethod
    def config_for(cls, values: Mapping[str, Any]) -> type:
        return _with_encoder(cls.Config, cls.base_class(values.get("base") or WrapperConfig().base).Config)  # type: ignore[attr-defined]

    @classmethod
    def defaults_for(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        base = cls.base_class(values.get("base") or WrapperConfig().base)  # type: ignore[attr-defined]
        kept = {
            section: base.defaults[section]
            for section in ("objective", "training")
            if section in base.defaults
        }
        return merge(kept, cls.defaults)

    @classmethod
    def settings_from(cls, model: Mapping[str, Any]) -> Mapping[str, Any]:
        cls.base_class(model["name"])
        return {
            "base": model["name"],
            "encoder": {key: value for key, value in model.items() if key != "name"},
        }

    def part_from(self, name: str) -> Model | None:
        return self.base if name == self.config.base else None

    def fit(self, events: Events) -> None:
        self.base.fit(events)

    @property
    def max_length(self) -> int:
        return self.base.max_length

    def needs_times(self) -> bool:
        return self.base.needs_times()

    def reads_request_time(self) -> bool:
        return self.base.reads_request_time()

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.base.item_vectors(items)


def _fits(wrapper: type[Wrapper], name: str) -> bool:
    try:
        base = load_model(name)
    except EnsuiteError:  # a package that cannot be imported is no choice
        return False
    return issubclass(base, Retriever) and issubclass(base, wrapper.needs)


@cache
def _with_encoder(wrapper: type, encoder: type) -> type:
    """Return ``wrapper``'s configuration class with the field `encoder` typed by its base's class."""
    text = WrapperConfig.__pydantic_fields__["encoder"].description  # type: ignore[attr-defined]
    body = {
        "__module__": wrapper.__module__,
        "__doc__": wrapper.__doc__,
        "__annotations__": {"encoder": encoder},
        "encoder": Field(default_factory=encoder, description=text),
    }
    return config(type(wrapper.__name__, (wrapper,), body))
