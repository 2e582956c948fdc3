"""Where the vectors of items come from: their texts and images by encoders, or a trained run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ensuite.content import IMAGE_ENCODER
from ensuite.errors import EnsuiteError

if TYPE_CHECKING:
    import polars as pl

    from ensuite.codes.table import SemanticIdTable
    from ensuite.content.vectors import ContentVectors, WithoutText

RUN = "run:"


class Listener(Protocol):
    """Who is told how far things are."""

    def update(self, name: str, done: int, total: int | None, loss: float | None = None) -> None:
        """Take news of the task ``name``."""

    def busy(self, what: str) -> None:
        """Hear that something without known steps goes on."""


@dataclass(frozen=True)
class Source:
    """What `ensuite codes build` was told, and a table remembers."""

    encoder: str
    """Of texts, or run:PATH."""
    text: str | None
    """Template of the items' texts; None: they are not read."""
    without_text: WithoutText
    cache: Path | None
    images: str | None = None
    """Template of the paths of the items' images; None: they are not read."""
    image_encoder: str = IMAGE_ENCODER

    def read(
        self, items: pl.DataFrame, where: str, device: str, working: Listener, *, new: bool = False
    ) -> ContentVectors:
        """Return the vectors of the items; ``where`` is how messages call their table,
        ``new`` whether it holds a few new items."""
        from ensuite.content.vectors import join

        if self.encoder.startswith(RUN):
            if self.text is not None or self.images is not None:
                raise EnsuiteError(
                    "--text and --images describe items to encoders; vectors of a run need none"
                )
            return run_vectors(Path(self.encoder.removeprefix(RUN)), items, where)
        if self.text is None and self.images is None:
            raise EnsuiteError(
                f"--text (or --images) is needed, such as --text '{{title}}' (item columns of {where}: "
                f"{', '.join(items.columns)})"
            )
        parts = []
        if self.text is not None:
            parts.append(self._read_texts(items, where, device, working, new))
        if self.images is not None:
            parts.append(self._read_images(items, where, device, working))
        return parts[0] if len(parts) == 1 else join(*parts)

    def _read_texts(
        self, items: pl.DataFrame, where: str, device: str, working: Listener, new: bool
    ) -> ContentVectors:
        from ensuite.content.encoders import load_encoder
        from ensuite.content.vectors import encode_items

        working.busy(f"loading {self.encoder}")
        assert self.text is not None
        return encode_items(
            items,
            self.text,
            load_encoder(self.encoder, device),
            where=where,
            without_text=self.without_text,
            may_be_empty=new,
            cache=self.cache,
            progress=lambda done, total: working.update("texts", done, total),
        )

    def _read_images(self, items: pl.DataFrame, where: str, device: str, working: Listener) -> ContentVectors:
        from ensuite.content.images import load_image_encoder
        from ensuite.content.vectors import encode_images

        working.busy(f"loading {self.image_encoder}")
        assert self.images is not None
        return encode_images(
            items,
            self.images,
            load_image_encoder(self.image_encoder, device),
            where=where,
            without_image=self.without_text,
            cache=self.cache,
            progress=lambda done, total: working.update("images", done, total),
        )

    @classmethod
    def remembered(
        cls,
        made: Mapping[str, Any],
        *,
        cache: Path | None = None,
        encoder: str | None = None,
        without_text: WithoutText | None = None,
    ) -> Source:
        """Return the source that a table of codes remembers (its provenance's `encoder`); ``encoder`` is
        where it is now."""
        return cls(
            encoder or made["name"] or "",
            made.get("template"),
            without_text or made.get("without_text", "error"),
            cache,
            made.get("images"),
            made.get("image_encoder") or IMAGE_ENCODER,
        )


def vectors_of_table(
    table: SemanticIdTable,
    items: pl.DataFrame,
    where: str,
    device: str,
    working: Listener,
    *,
    cache: Path | None = None,
    encoder: str | None = None,
) -> ContentVectors:
    """Return the vectors that a table of codes was made of; ``encoder`` is where theirs is now.

    Raises
    ------
    EnsuiteError
        When what goes by the encoder's name is another one now.
    """
    made = table.provenance["encoder"]
    source = Source.remembered(made, cache=cache, encoder=encoder)
    found = source.read(items, where, device, working)
    if found.source["hash"] != made["hash"]:
        raise EnsuiteError(
            f"{source.encoder or source.image_encoder}: not what the codes were made by: its hash is "
            f"{found.source['hash']}, theirs {made['hash']}; give it back its files, or build the codes again"
        )
    return found


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
