"""Systems that write the codes of the next item instead of scoring vectors: the contract, and what follows
from it for ranking."""

from __future__ import annotations

import copy
import dataclasses
import logging
from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ensuite.codes.beam import Start, beam_search, exact_scores
from ensuite.codes.trie import Allowed, CodeTrie
from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models.base import BlockScorer, Model
from ensuite.models.materials import Materials
from ensuite.nn.t5 import Shape
from ensuite.objectives import Objective
from ensuite.objectives.cross_entropy import CrossEntropy

EXACT_ITEMS = 1000
"""With `ranking = auto`, larger catalogues are searched with a beam."""

NODES_HELD = 1 << 15
"""Prefixes, times users, that exact scoring reads at a time."""

log = logging.getLogger(__name__)


@config
class GeneratorConfig:
    """What the configuration of every generator begins with."""

    level_sizes: tuple[int, ...] = ()
    """Codes of each level; written here by the training, from the table of codes."""
    beams: int = 50
    """Width of the search; at least as many as items are asked for are always kept."""
    ranking: Literal["auto", "exact", "beam"] = "auto"
    """Score every item (exact), or only those that the search reaches: the others then share one score, below
    all of them. auto: exact for catalogues of at most 1,000 items, unless `cold_share` is set."""
    cold_share: float = 1.0
    """Largest share of a recommended list that items without a training event may take, as long as there are
    others (TIGER's epsilon); evaluation ranks by score."""

    cold_match: bool = False
    """Score items without a training event by their content codes: their last one, the digit that tells
    duplicates apart, counts as that of the best other item beside them. Needs a table with such a digit."""

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams = {self.beams}: at least 1 is needed")
        if not 0 <= self.cold_share <= 1:
            raise ValueError(f"cold_share = {self.cold_share}: a share between 0 and 1 is needed")
        if self.cold_share < 1 and self.ranking == "exact":
            raise ValueError(
                f"cold_share = {self.cold_share} is a share of lists, and ranking = exact scores items one "
                "by one; use ranking = beam"
            )


@config
class T5Config(GeneratorConfig):
    """What is common to the generators that are made of T5's layers; defaults are TIGER's."""

    dim: int = 128
    """Width D of tokens and layers."""
    blocks: int = 4
    """Layers of the encoder, where there is one, and of the decoder each."""
    heads: int = 6
    """Attention heads."""
    head_dim: int = 64
    """Width of a head: heads * head_dim need not be dim."""
    inner: int = 1024
    """Width of the feed-forward layer."""
    dropout: float = 0.1
    """Share of elements dropped after the embedding, on attention weights, and in and after each layer."""
    max_length: int = 20
    """Most recent events that are read."""

    @property
    def shape(self) -> Shape:
        """Sizes of a stack of layers."""
        return Shape(self.dim, self.heads, self.head_dim, self.inner, self.dropout)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks, self.heads, self.head_dim, self.inner, self.max_length) < 1:
            raise ValueError("dim, blocks, heads, head_dim, inner and max_length are at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: at least 0 and below 1 is needed")


class Generator(Model):
    """A model that gives the log-probabilities of code tuples; it is asked for items by `generate`.

    The table of codes is a buffer, so that a run needs no other folder. The loss is the cross-entropy of
    codes; of the section `objective`, whose classes are items, only the label smoothing is read.
    """

    Config: ClassVar[type] = GeneratorConfig
    reads: ClassVar[tuple[str, ...]] = ("codes",)
    codes: Tensor  # [V + 1, L] int32, row 0 is -1
    cold: Tensor  # [V + 1] bool, without a training event

    def __init__(self, config: Any, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items)
        if not config.level_sizes:
            raise EnsuiteError(
                f"{type(self).__name__} writes codes of items, and no table of codes was given; make one "
                "with `ensuite codes build` and name it with --codes.table"
            )
        plain = isinstance(objective, CrossEntropy) and objective.temperature == 1
        if objective is not None and not plain:
            raise EnsuiteError(
                f"{type(self).__name__} learns by the cross-entropy of codes: of the section objective only "
                "label_smoothing has a meaning here; leave the rest out"
            )
        self.label_smoothing = objective.label_smoothing if isinstance(objective, CrossEntropy) else 0.0
        table = torch.full((n_items + 1, len(config.level_sizes)), -1, dtype=torch.int32)
        self.register_buffer("codes", table)
        self.register_buffer("cold", torch.zeros(n_items + 1, dtype=torch.bool))

    @classmethod
    def sized_for(cls, config: Any, materials: Materials) -> Any:
        assert materials.codes is not None
        return dataclasses.replace(config, level_sizes=tuple(map(int, materials.codes.level_sizes)))

    def take(self, materials: Materials) -> None:
        assert materials.codes is not None
        if self.config.cold_match and materials.codes.policy != "digit":
            raise EnsuiteError(
                "cold_match passes over the digit that tells duplicates apart, and the table of codes has "
                f"none (duplicates: {materials.codes.policy}); leave cold_match out"
            )
        codes = torch.from_numpy(np.ascontiguousarray(materials.codes.codes[: self.n_items + 1]))
        self.codes = codes.to(self.codes)

    def fit(self, events: Events) -> None:
        counts = np.bincount(events.item_idx[events.rows()], minlength=self.n_items + 1)
        self.cold = torch.from_numpy(counts == 0).to(self.cold.device)
        self.cold[0] = False

    @property
    def exact(self) -> bool:
        """Whether every item is scored, not only those that a search reaches."""
        ranking = self.config.ranking
        small = self.n_items <= EXACT_ITEMS and self.config.cold_share == 1
        return ranking == "exact" or (ranking == "auto" and small)

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Self:
        """Return this model with more items, by their codes [N, L] (`TakesCodes`); ``vectors`` are read by
        the systems that say so."""
        codes = codes.to(self.codes)
        sizes = codes.new_tensor(self.config.level_sizes)
        bad = ((codes < 0) | (codes >= sizes)).nonzero()
        if len(bad):
            item, level = bad[0].tolist()
            raise EnsuiteError(
                f"new item {item + 1}: code {int(codes[item, level])} at level {level}, which has "
                f"{int(sizes[level])}; the model has no weights for it: train it again on a table with room"
            )
        grown = copy.copy(self)
        grown._buffers = {
            **self._buffers,
            "codes": torch.cat([self.codes, codes]),
            "cold": F.pad(self.cold, (0, len(codes)), value=True),
        }
        grown.n_items = self.n_items + len(codes)
        return grown

    @abstractmethod
    def generate(
        self,
        history: History,
        k: int,
        beams: int | None = None,
        *,
        catalogue: Any = None,
        allowed: Tensor | None = None,
        excluded: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the k best items that the search finds, best first, and their log-probabilities: [B, k]
        each.

        Parameters
        ----------
        beams
            Width of the search; None: `config.beams`. Never below k.
        catalogue
            What `catalogue` returned, if it is at hand.
        allowed
            True at the rows that may be returned, [V + 1] bool; None: all.
        excluded
            Rows that must not be returned to each history, [B, X] int64, 0 where there are fewer.

        Raises
        ------
        EnsuiteError
            When a history is left with no item at all.
        """

    @abstractmethod
    def exact_scores(self, history: History, catalogue: Any) -> Tensor:
        """Return the log-probability of every row, [B, V + 1]; -inf at row 0 and at items without codes."""

    def scorer(self, history: History, catalogue: Any) -> BlockScorer:
        """Return the function that scores blocks of items, by their log-probability.

        Without `exact`, only the items that a search of `config.beams` finds have it; all others share a
        score below.
        """
        if self.exact:
            scores = self.exact_scores(history, catalogue)
        else:
            beams = min(self.config.beams, self.n_items)
            items, found = self.generate(history, beams, beams, catalogue=catalogue)
            worst = found.masked_fill(items == 0, torch.inf).amin(1, keepdim=True)
            scores = (worst - 1).expand(-1, self.n_items + 1).clone()  # [B, V + 1]
            scores.scatter_(1, items, torch.where(items == 0, scores[:, :1], found))
            scores[:, 0] = -torch.inf
        return lambda first, last: scores[:, first:last].clone()

    def cap_cold(self, items: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cut lists [B, n] to k places, of which cold items take at most their share while there are others:
        those beyond it go behind."""
        most = int(self.config.cold_share * k)
        cold = self.cold[items]
        behind = (cold & (cold.cumsum(1) > most)) | (items == 0)
        behind = behind.to(torch.int8) + (items == 0)
        at = behind.argsort(dim=1, stable=True)[:, :k]
        return items.gather(1, at), scores.gather(1, at)


class OrderedGenerator(Generator):
    """A generator that writes one code after another: a subclass gives `begin` and `step`."""

    @abstractmethod
    def begin(self, history: History) -> Start:
        """Read the histories: log-probabilities of the first code, [B, 1, K], and a state."""

    @abstractmethod
    def step(self, codes: Tensor, parents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one more code for each beam, see `ensuite.codes.beam.Step`; the old state stays as it was."""

    def catalogue(self) -> CodeTrie:
        trie = CodeTrie(self.codes)
        if not self.exact and self.config.beams > trie.n_items:
            log.warning(
                "beams = %d, and %d items have codes: the search keeps all of them, no more",
                self.config.beams,
                trie.n_items,
            )
        return trie

    def generate(
        self,
        history: History,
        k: int,
        beams: int | None = None,
        *,
        catalogue: CodeTrie | None = None,
        allowed: Tensor | None = None,
        excluded: Tensor | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do as `Generator.generate`; with a ``temperature``, lists are drawn (see `beam_search`)."""
        trie = self.catalogue() if catalogue is None else catalogue
        width = max(k, min(self.config.beams if beams is None else beams, trie.n_items))
        items, scores = beam_search(
            trie,
            self.begin(history),
            self.step,
            width=width,
            k=k if self.config.cold_share == 1 else width,
            allowed=Allowed(trie, len(history.items), allowed, excluded),
            matched=self._matched(trie),
            temperature=temperature,
            generator=generator,
        )
        return (items, scores) if self.config.cold_share == 1 else self.cap_cold(items, scores, k)

    def exact_scores(self, history: History, catalogue: CodeTrie) -> Tensor:
        matched = self._matched(catalogue)
        by_place = exact_scores(catalogue, self.begin(history), self.step, NODES_HELD, matched)
        scores = by_place.new_full((len(by_place), self.n_items + 1), -torch.inf)
        scores[:, catalogue.order] = by_place
        return scores

    def _matched(self, trie: CodeTrie) -> Tensor | None:
        """Return which leaves are found by all codes but the last: those of cold items, with `cold_match`."""
        return self.cold[trie.order[trie.depths[-1].first_leaf[:-1]]] if self.config.cold_match else None
