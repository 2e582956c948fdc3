"""Which systems there are: whatever is registered under the entry-point group ``ensuite.models``, ours or
another package's."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.models.base import Model

GROUP = "ensuite.models"


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of all registered systems, in alphabetical order, importing none."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load_model(name: str) -> type[Model]:
    """Return the model class registered under ``name``.

    Raises
    ------
    EnsuiteError
        For an unknown name (with the nearest known one), or when its module cannot be imported.
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        raise EnsuiteError(f"unknown model '{name}'; {did_you_mean(name, model_names())}")
    try:
        return found[0].load()
    except ImportError as error:
        raise EnsuiteError(f"model '{name}' ({found[0].value}) cannot be imported: {error}") from error
