"""Where the vectors of items come from: their texts and an encoder, or a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensuite.errors import EnsuiteError

if TYPE_CHECKING:
    import polars as pl

    from ensuite.cli.codes.show import Working
    from ensuite.content.vectors import ContentVectors, WithoutText

RUN = "run:"


@dataclass(frozen=True)
class Source:
    """What `ensuite codes build` was told, and a table remembers."""

    encoder: str
    text: str | None
    without_text: WithoutText
    cache: Path | None

    def read(
        self, items: pl.DataFrame, where: str, device: str, working: Working, *, new: bool = False
    ) -> ContentVectors:
        """Return the vectors of the items; ``where`` is how messages call their table,
        ``new`` whether it holds a few new items."""
        from ensuite.content.encoders import load_encoder
        from ensuite.content.vectors import encode_items

        if self.encoder.startswith(RUN):
            if self.text is not None:
                raise EnsuiteError("--text describes items to a text encoder; vectors of a run need none")
            return run_vectors(Path(self.encoder.removeprefix(RUN)), items, where)
        if self.text is None:
            raise EnsuiteError(
                f"--text is needed, such as --text '{{title}}' (item columns of {where}: "
                f"{', '.join(items.columns)})"
            )
        working.busy(f"loading {self.encoder}")
        encoder = load_encoder(self.encoder, device)
        return encode_items(
            items,
            self.text,
            encoder,
            where=where,
            without_text=self.without_text,
            may_be_empty=new,
            cache=self.cache,
            progress=lambda done, total: working.update("texts", done, total),
        )


def run_vectors(path: Path, items: pl.DataFrame, where: str) -> ContentVectors:
    """Return the item vectors of a trained run as content vectors of the same items."""
    import numpy as np
    import torch

    from ensuite.codes.build import hash_vectors
    from ensuite.content.vectors import ContentVectors
    from ensuite.models.base import Retriever
    from ensuite.training.run import load_run

    run = load_run(path)
    if not isinstance(run.model, Retriever):
        raise EnsuiteError(f"{RUN}{path}: a run of {run.config.name}, which has no item vectors; try sasrec")
    ids = items["item_id"].to_list()
    if run.items["item_id"].to_list() != ids:
        raise EnsuiteError(f"{RUN}{path}: trained on other items than those of {where}; train it there")
    with torch.inference_mode():
        vectors = run.model.item_vectors()[1:].float().cpu().numpy()
    found = hash_vectors(vectors)
    source = {
        "name": f"{RUN}{path.resolve()}",
        "hash": found,
        "model": run.config.name,
        "dim": vectors.shape[1],
    }
    return ContentVectors(ids, vectors, np.ones(len(ids), bool), source, {"items": len(ids)})
