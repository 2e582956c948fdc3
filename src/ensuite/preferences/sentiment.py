"""Whether a preference says what is wanted or what is to be avoided, and its opposite."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ensuite.content.encoders import TEXT_EXTRA
from ensuite.errors import EnsuiteError

Labeller = Callable[[Sequence[str]], list[bool]]
"""Says of each text whether it is negative."""

_NEGATIVE = re.compile(r"\s*(avoid|exclude|no)\b[\s:,]*", re.IGNORECASE)
_OPPOSITE = {"avoid": "find", "exclude": "search for", "no": "search for"}
BATCH = 32


def by_rule(texts: Sequence[str]) -> list[bool]:
    """Call negative what begins with avoid, exclude or no.

    >>> by_rule(["Avoid horror films", "Find a novel", "Nothing else"])
    [True, False, False]
    """
    return [_NEGATIVE.match(text) is not None for text in texts]


def invert(text: str) -> str:
    """Turn a negative preference into a positive one by the paper's rule; another text stays as it is.

    >>> invert("Avoid tight sleeves"), invert("no glitter"), invert("Find glitter")
    ('Find tight sleeves', 'search for glitter', 'Find glitter')
    """
    found = _NEGATIVE.match(text)
    rest = "" if found is None else text[found.end() :].strip()
    if found is None or not rest:
        return text
    opposite = _OPPOSITE[found[1].lower()]
    return f"{opposite.capitalize() if found[1][0].isupper() else opposite} {rest}"


def load_labeller(name: str, device: str = "cpu") -> Labeller:
    """Return the labeller ``name``: `rule`, or the folder of a sentiment classifier (the paper's is
    siebert/sentiment-roberta-large-english).

    Raises
    ------
    EnsuiteError
        When the folder holds no classifier, or one without a class that is called negative.
    """
    if name == "rule":
        return by_rule
    folder = Path(name).expanduser()
    if not (folder / "config.json").exists():
        raise EnsuiteError(
            f"--sentiment {name}: rule, or the folder of a text classifier (config.json is missing there)"
        )
    if importlib.util.find_spec("transformers") is None:
        raise EnsuiteError(f"--sentiment {name}: the library transformers is needed: {TEXT_EXTRA}")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnsuiteError(f"--sentiment {name}: no text classifier: {why}") from None
    classes = {str(label).lower(): number for number, label in model.config.id2label.items()}
    if "negative" not in classes:
        raise EnsuiteError(f"--sentiment {name}: none of its classes ({', '.join(classes)}) is 'negative'")
    model = model.to(device).eval()

    def label(texts: Sequence[str]) -> list[bool]:
        found: list[bool] = []
        for at in range(0, len(texts), BATCH):
            words = tokenizer(
                list(texts[at : at + BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                best = model(**words.to(device)).logits.argmax(-1)
            found += (best == classes["negative"]).tolist()
        return found

    return label
