"""What a search over codes costs: beams with a cache beside the same search that reads prefixes anew, tokens
a second and memory against the number of beams, and the trie of a million items.

    OMP_NUM_THREADS=1 python benchmarks/generation.py

A TIGER of the paper's size (4 + 4 layers) with fresh weights reads 16 histories of 50 items and searches a
catalogue of 100,000 items in 4 codes of 256; every measurement is the best of several, each in a process of
its own for the sake of its memory. Rows go into results/generation.csv.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from ensuite.codes.beam import beam_search
from ensuite.codes.trie import Allowed, CodeTrie
from ensuite.data.batches import History
from ensuite.models.tiger import TIGER, TIGERConfig

SIZES = (256,) * 4


@dataclass
class Options:
    """What is measured."""

    beams: tuple[int, ...] = (1, 10, 20, 50, 100, 200)
    """Widths of the search with the cache."""
    anew: int = 50
    """Width at which the search that reads prefixes anew is measured too."""
    batch: int = 16
    """Histories searched for at a time."""
    history: int = 50
    """Items in each."""
    items: int = 100_000
    """Items of the catalogue."""
    trie_items: int = 1_000_000
    """Items of the large trie."""
    repeats: int = 3
    """Times each search is run."""
    out: Path = Path(__file__).parents[1] / "results" / "generation.csv"
    """The table."""
    only: str = field(default="", metadata={"help": "internal"})
    """Measure one thing in this process and print it as JSON: ARCHITECTURE/WAY/BEAMS, or trie."""


def random_codes(n: int) -> Tensor:
    """Draw a table of codes [n + 1, 4]."""
    codes = torch.randint(0, 256, (n + 1, 4), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    codes[0] = -1
    return codes


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Anew:
    """The same model as a search asks it, but every step reads all codes again, and the history once for each
    beam; with ``encoded`` the encoder reads it once in all, and its output is repeated for each beam."""

    def __init__(self, model: TIGER, history: History, encoded: bool):
        self.model, self.items, self.memory = model, history.items, None
        if encoded:
            self.memory = model._encode(history.items)

    def begin(self) -> tuple[Tensor, Any]:
        return self.model.begin(History(self.items))[0], self.items.new_zeros(len(self.items), 1, 0)

    def step(self, codes: Tensor, parents: Tensor, state: Tensor) -> tuple[Tensor, Any]:
        model, (rows, beams) = self.model, codes.shape
        row = torch.arange(rows)[:, None]
        state = torch.cat([state[row, parents], codes[..., None]], 2)  # [B, W, l]
        level = state.shape[2]
        written = (state + model.offsets[:level]).flatten(0, 1)  # [B * W, l]
        items = self.items.repeat_interleave(beams, 0)
        if model.encoder is None:
            read = torch.cat([model.item_tokens(items), written], 1)
            hidden = model.decoder(model.tokens(read), None)
        else:
            if self.memory is None:
                memory, mask = model._encode(items)
            else:
                memory, mask = (x.repeat_interleave(beams, 0) for x in self.memory)
            begin = torch.full_like(written[:, :1], model.begin_token)
            hidden = model.decoder(model.tokens(torch.cat([begin, written], 1)), None, memory, mask)
        return model.log_probs(hidden[:, -1], level).unflatten(0, (rows, beams)), state


@torch.inference_mode()
def measure_search(options: Options, architecture: str, way: str, beams: int) -> dict[str, Any]:
    """Search with ``beams`` and return seconds, tokens a second and memory."""
    torch.manual_seed(0)
    config = TIGERConfig(
        level_sizes=SIZES,
        architecture=architecture,  # type: ignore[arg-type]
        max_length=options.history,
    )
    model = TIGER(config, options.items).eval()
    model.codes = random_codes(options.items)
    trie = CodeTrie(model.codes)
    history = History(torch.randint(1, options.items + 1, (options.batch, options.history)))
    before, seconds = peak(), []
    for _ in range(options.repeats if way == "cache" else 1):
        began = time.perf_counter()
        anew = Anew(model, history, way == "encoded once") if way != "cache" else None
        start, step = (model.begin(history), model.step) if anew is None else (anew.begin(), anew.step)
        items, scores = beam_search(
            trie, start, step, width=beams, k=min(10, beams), allowed=Allowed(trie, options.batch, None, None)
        )
        seconds.append(time.perf_counter() - began)
    return {
        "what": f"search, {architecture}, {way}",
        "beams": beams,
        "seconds": round(min(seconds), 4),
        "tokens_per_second": round(options.batch * beams * len(SIZES) / min(seconds)),
        "memory_mb": round((peak() - before) / 1e6, 1),
        "first": [items[:, 0].tolist(), scores[:, 0].tolist()],
    }


def measure_trie(options: Options) -> dict[str, Any]:
    """Build the large trie and return seconds and memory: what it holds, and the peak while it is built."""
    codes = random_codes(options.trie_items)
    CodeTrie(codes[:1000])
    before, began = peak(), time.perf_counter()
    trie = CodeTrie(codes)
    return {
        "what": f"trie of {options.trie_items:,} items x 4 codes ({trie.nbytes / 1e6:.0f} MB when built)",
        "beams": "",
        "seconds": round(time.perf_counter() - began, 2),
        "tokens_per_second": "",
        "memory_mb": round((peak() - before) / 1e6, 1),
    }


def main() -> None:
    """Measure everything and write the table."""
    options = tyro.cli(Options, description=__doc__)
    if options.only == "trie":
        sys.stdout.write(json.dumps(measure_trie(options)))
        return
    if options.only:
        architecture, way, beams = options.only.split("/")
        sys.stdout.write(json.dumps(measure_search(options, architecture, way, int(beams))))
        return
    rows = [_apart("trie")]
    for architecture, ways in (("encoder-decoder", ("encoded once", "anew")), ("decoder", ("anew",))):
        found = {n: _apart(f"{architecture}/cache/{n}") for n in options.beams}
        rows += found.values()
        for way in ways:
            row, cached = _apart(f"{architecture}/{way}/{options.anew}"), found[options.anew]
            assert cached["first"][0] == row["first"][0], "the searches must find the same"
            row["what"] += f" ({row['seconds'] / cached['seconds']:.1f} x the time with the cache)"
            rows.append(row)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [key for key in rows[0] if key != "first"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.write(options.out.read_text())


def _apart(what: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
