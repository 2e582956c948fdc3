"""HSTU: Hierarchical Sequential Transduction Units (Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152).

"Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations".
Attention without softmax, SiLU(q·k + bias) / N, with a bias by distance and by time, and a gate in place of
the feed-forward layer. Official code: https://github.com/meta-recsys/generative-recommenders.

The time bias of a position reads the time at which the *next* item is asked for: known when a request comes,
so no leak, but an advantage over models without it. ``time_mode: last_event`` gives it up: a fair comparison.

What differs from the released code:
- Biases are kept for past offsets only: a causal model never reads the other half of the released table.
- Events are in the dataset's own stable order; the released preprocessing is unstable, which moves targets.
- Only real positions are computed on a CPU (`nn/pointwise.py`); N stays the released constant: same numbers.
- Stochastic length, which the release leaves out, is here: a kept event keeps its target and request time.
- The default objective is the cross-entropy over the catalogue, better wherever that is small. The released
  loss, 128 uniform negatives for each position, is in recipes/hstu/ml-1m-as-released.yaml.

Reproduced: ML-1M, full ranking: HR@10 .3097, NDCG@10 .1720 (README of the official code), .3226 / .1880 with
a stable order (RecTools).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models import _hstu_steps
from ensuite.models._growing import with_rows
from ensuite.models._hstu_cache import HSTUCache
from ensuite.models.base import Retriever
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, PositionTable, Similarity, similar
from ensuite.nn.hstu import HSTUBlock
from ensuite.nn.hstu_cache import LayerCache
from ensuite.nn.pointwise import PointwiseAttention, plan_ragged
from ensuite.nn.stochastic_length import Selection, choose_events, stochastic_lengths
from ensuite.nn.time_bias import time_buckets
from ensuite.objectives import Objective


@config
class HSTUConfig:
    """Shape of the encoder; defaults are the released ones for ML-1M."""

    dim: int = 50
    """Width D of items and layers."""
    blocks: int = 2
    """Number of layers."""
    heads: int = 1
    """Attention heads H."""
    dim_qk: int = 50
    """Width of a head's queries and keys."""
    dim_v: int = 50
    """Width of a head's values and gates."""
    max_length: int = 200
    """Most recent events that are read, L."""
    dropout: float = 0.2
    """Share of elements dropped after the embedding and before each output layer; never attention weights."""
    positions: bool = True
    """Add learned positions, counted from the oldest event."""
    position_bias: bool = True
    """Bias attention by the offset between query and key."""
    time_bias: bool = True
    """Bias attention by the time between them; needs a dataset with times."""
    time_mode: Literal["request", "last_event"] = "request"
    """Time of the query: when the next item is asked for (released), or that of its own event."""
    activation: Literal["silu", "softmax"] = "silu"
    """Pointwise attention, or softmax (the paper's ablation)."""
    normalizer: Literal["constant", "length"] = "constant"
    """Divide weights by N = max_length + extra_length (released), or by the number of events a query sees."""
    extra_length: int = 11
    """Added to max_length for N, as released: 10 positions of output and one."""
    score_scale: bool = False
    """Multiply q·k by 1 / sqrt(dim_qk), as the production layer does and the research code does not."""
    concat_ua: bool = False
    """The output layer reads [U, A, U * Norm(A)], not the product alone."""
    affine_norm: bool = False
    """Layer norms with weights and biases (production layer)."""
    group_norm: bool = False
    """Normalise what is attended to head by head (production layer)."""
    projection_bias: bool = False
    """A bias in the input projection (production layer)."""
    similarity: Similarity = "cosine"
    """Score by cosine (give the objective a temperature) or by dot product."""
    stochastic_length: float = 0.0
    """Alpha of stochastic length, above 1 and at most 2: shorter histories in training; 0 = off."""
    stochastic_longest: int = 0
    """Nc of stochastic length; 0 = max_length."""
    stochastic_selection: Selection = "recency"
    """Which events a cut history keeps: the most recent, random ones, or random ones weighted by recency."""
    init_std: float = 0.02
    """Standard deviation of the initial item vectors."""

    def __post_init__(self) -> None:
        for name in ("dim", "blocks", "heads", "dim_qk", "dim_v", "max_length", "extra_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        if self.init_std <= 0:
            raise ValueError(f"init_std = {self.init_std}: above 0 is needed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: at least 0 and below 1 is needed")
        if self.stochastic_length and not 1 < self.stochastic_length <= 2:
            raise ValueError(f"stochastic_length = {self.stochastic_length}: 0, or above 1 and at most 2")
        if self.stochastic_longest < 0:
            raise ValueError("stochastic_longest counts events: 0 or more")

    @property
    def span(self) -> int:
        """N of the released code: the divisor of the weights, and the number of positions and offsets."""
        return self.max_length + self.extra_length


class HSTU(Retriever):
    """A stack of HSTU layers over item vectors, with a tied item table."""

    Config = HSTUConfig
    defaults: ClassVar[Mapping[str, Any]] = {"objective": {"temperature": 0.05}}
    summary = "Pointwise attention with time and position bias"
    paper = "Zhai et al., ICML 2024, arXiv:2402.17152"
    family = "attention"
    state = "measured"

    def __init__(self, config: HSTUConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c = config
        self.items = ItemTable(n_items + 1, c.dim, c.init_std)
        self.positions = PositionTable(c.span, c.dim, "start", c.dim**-0.5) if c.positions else None
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(self._block() for _ in range(c.blocks))

    def _block(self) -> HSTUBlock:
        c = self.config
        attention = PointwiseAttention(
            c.span, position_bias=c.position_bias, time_bias=c.time_bias, activation=c.activation,
            normalizer=c.normalizer, scale=c.score_scale,
        )  # fmt: skip
        return HSTUBlock(
            c.dim, c.heads, c.dim_qk, c.dim_v, attention, c.dropout, concat_ua=c.concat_ua,
            affine_norm=c.affine_norm, group_norm=c.group_norm, projection_bias=c.projection_bias,
        )  # fmt: skip

    @property
    def stack(self) -> list[HSTUBlock]:
        """The layers, lowest first."""
        return cast(list[HSTUBlock], list(self.blocks))

    def needs_times(self) -> bool:
        by_recency = self.config.stochastic_length > 0 and self.config.stochastic_selection == "recency"
        return self.config.time_bias or by_recency

    def reads_request_time(self) -> bool:
        return self.config.time_bias and self.config.time_mode == "request"

    def query_times(self, history: History) -> tuple[Tensor | None, Tensor | None]:
        """Return the times of keys and of queries, [B, L] each, or None twice without the time bias."""
        if not self.config.time_bias:
            return None, None
        if history.times is None or (self.reads_request_time() and history.request_times is None):
            raise EnsuiteError(
                "hstu: the time bias needs the time of every event, and this data holds an order only; "
                "prepare the dataset with a time column, or set model.time_bias: false"
            )
        return history.times, history.request_times if self.reads_request_time() else history.times

    def input_vectors(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...] as they are before positions are added: [..., D]."""
        return self.items(items) * self.config.dim**0.5

    def embed(self, history: History, vectors: Tensor | None = None) -> Tensor:
        """Return the sum of item vectors (or ``vectors`` in their place) and position vectors: [B, L, D]."""
        return self.embed_at(history.items, history.positions, vectors)

    def embed_at(self, items: Tensor, positions: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Return the first layer's input for ``items`` [B, L] at ``positions`` [1 or B, L]: [B, L, D]."""
        x = self.input_vectors(items) if vectors is None else vectors
        if self.positions is not None:
            x = x + F.embedding(positions, self.positions.weight)
        return self.dropout(x)

    def forward(self, history: History) -> Tensor:
        return similar(self._run(history), self.config.similarity)

    def _run(self, history: History, blocks: int | None = None, vectors: Tensor | None = None) -> Tensor:
        dense = history.items.is_cuda or torch.compiler.is_compiling()
        return (self.forward_dense if dense else self.forward_ragged)(history, blocks, vectors)

    def forward_ragged(
        self, history: History, blocks: int | None = None, vectors: Tensor | None = None
    ) -> Tensor:
        """Run the first ``blocks`` layers (None = all) on real positions: [B, L, D], zero at padding."""
        x, (times, queries) = self.embed(history, vectors), self.query_times(history)  # [B, L, D]
        real = history.mask.flatten().nonzero()[:, 0]  # [T]
        offsets = F.pad(history.lengths.cumsum(0), (1, 0))
        if times is not None and queries is not None:
            times, queries = times.flatten()[real], queries.flatten()[real]
        plan = plan_ragged(offsets, times, queries, heads=self.config.heads)
        tokens = x.flatten(0, 1).index_select(0, real)  # [T, D]
        for block in self.stack[:blocks]:
            tokens = block.ragged(tokens, plan)
        return torch.zeros_like(x).flatten(0, 1).index_copy(0, real, tokens).view_as(x)

    def forward_dense(
        self, history: History, blocks: int | None = None, vectors: Tensor | None = None
    ) -> Tensor:
        """Run the first ``blocks`` layers (None = all) on padded sequences: [B, L, D]."""
        x, (times, queries) = self.embed(history, vectors), self.query_times(history)
        positions = history.positions  # [1, L]
        offsets = positions[:, :, None] - positions[:, None]  # [1, L, L]
        buckets = None if times is None or queries is None else time_buckets(queries, times)  # [B, L, L]
        for block in self.stack[:blocks]:
            x = block.dense(x, offsets >= 0, offsets, buckets)
        return x

    def encode(self, history: History) -> Tensor:
        """Return the output after the last event, [B, D]; the last layer is computed there only."""
        return self.encode_vectors(None, history)

    def encode_vectors(self, vectors: Tensor | None, history: History) -> Tensor:
        """Return the output after the last event, [B, D], with ``vectors`` [B, L, D] for the items' own."""
        x, lengths = self._run(history, self.config.blocks - 1, vectors), history.lengths  # [B, L, D]
        times, queries = self.query_times(history)
        last = (lengths - 1)[:, None]  # [B, 1]
        newest = x.gather(1, last[..., None].expand(-1, -1, x.shape[-1]))  # [B, 1, D]
        offsets = (last - history.positions)[:, None]  # [B, 1, L]
        buckets = None if times is None or queries is None else time_buckets(queries.gather(1, last), times)
        block = self.stack[-1]
        keys, query = block.project(x), block.project(newest)
        attended = block.attention.dense(query.query, keys.key, keys.value, offsets >= 0, offsets, buckets)
        return similar(block.finish(newest, query.gate, attended)[:, 0], self.config.similarity)

    def begin(self, history: History) -> tuple[Tensor, Any]:
        """Read the histories (protocol `Stepwise`, see `_hstu_steps`)."""
        return _hstu_steps.begin(self, history)

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read ``token`` [B, D] after all that was read before (protocol `Stepwise`)."""
        return _hstu_steps.step(self, token, state)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return similar(self.items.weight if items is None else self.items(items), self.config.similarity)

    def with_items(self, like: Sequence[Sequence[int]]) -> HSTU:
        """Return this model with more items (protocol `TakesItems`)."""
        return with_rows(self, like)

    def start_cache(self, history: History) -> HSTUCache:
        """Read histories once; the cache then takes one event at a time."""
        return HSTUCache(self, history)

    def encode_candidates(self, history: History, candidates: Tensor, micro_batch: int = 0) -> Tensor:
        """Encode candidates as if each came next (M-FALCON): each sees the history and itself, none sees
        another.

        Parameters
        ----------
        history
            [B, L]; with the time bias a candidate's time is the request's, that of the last position.
        candidates
            Item rows: [B, C] int64.
        micro_batch
            Candidates in one pass; 0 = all. The history's keys and values are computed once, whatever it is.

        Returns
        -------
        Tensor
            The output at each candidate, which a ranking head reads: [B, C, D].
        """
        history = history.last(self.max_length)
        lengths, (times, queries) = history.lengths, self.query_times(history)
        cache = LayerCache(self.stack, self.embed(history), lengths, times, queries)
        asked = times if times is None or history.request_times is None else history.request_times
        outputs = []
        for items in candidates.split(micro_batch or candidates.shape[1], 1):
            at = lengths[:, None].expand_as(items)  # directly after the history
            now = None if asked is None else asked.gather(1, at - 1)  # [B, Q]
            outputs.append(cache.read(self.embed_at(items, at), at, now, now)[0])
        return similar(torch.cat(outputs, 1), self.config.similarity)

    def score_candidates(self, history: History, candidates: Tensor, micro_batch: int = 0) -> Tensor:
        """Return the product of each candidate's output (`encode_candidates`) and its item vector: [B, C].

        The released model has no ranking head, and next-item training does not teach this score: rank with a
        head that is trained on `encode_candidates`, or retrieve with `scorer`.
        """
        output = self.encode_candidates(history, candidates, micro_batch)
        return (output * self.item_vectors(candidates)).sum(-1)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the objective over all positions with a target: a scalar."""
        if self.training and self.config.stochastic_length:
            batch = self.shorten(batch)
        return super().loss(batch)

    def shorten(self, batch: Batch) -> Batch:
        """Apply stochastic length: keep some events of long histories, with targets and request times."""
        c, history = self.config, batch.history
        kept = stochastic_lengths(history.lengths, c.stochastic_longest or c.max_length, c.stochastic_length)
        width = history.items.shape[1]
        index, mask = choose_events(history.lengths, kept, c.stochastic_selection, width, history.times)

        def take(x: Tensor) -> Tensor:
            return x.gather(1, index) * mask

        times, requests = (None if x is None else take(x) for x in (history.times, history.request_times))
        return replace(
            batch, history=History(take(history.items), times, requests), targets=take(batch.targets)
        )
