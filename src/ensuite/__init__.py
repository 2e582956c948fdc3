"""Ensuite: from a log of who did what and when, to a model that says what comes next."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensuite.data.dataset import Dataset as Dataset
    from ensuite.data.prepare import prepare as prepare
    from ensuite.errors import EnsuiteError as EnsuiteError
    from ensuite.evaluate.compare import compare as compare
    from ensuite.serve.recommender import Recommender as Recommender
    from ensuite.training.loop import train as train
    from ensuite.training.run import load_run as load_run
    from ensuite.training.transfer import transfer as transfer

__version__ = "0.1.0"

# Imported when first used, so that `import ensuite` costs nothing.
_HOMES = {
    "Dataset": "ensuite.data.dataset",
    "EnsuiteError": "ensuite.errors",
    "Recommender": "ensuite.serve.recommender",
    "compare": "ensuite.evaluate.compare",
    "load_run": "ensuite.training.run",
    "prepare": "ensuite.data.prepare",
    "train": "ensuite.training.loop",
    "transfer": "ensuite.training.transfer",
}
__all__ = [
    "Dataset",
    "EnsuiteError",
    "Recommender",
    "__version__",
    "compare",
    "load_run",
    "prepare",
    "train",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ensuite' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
