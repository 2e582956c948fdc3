"""MQSA-TED: Collaboration and Transition (Zhu et al., WSDM 2024, https://arxiv.org/abs/2311.01056).

Two additions to SASRec. *MQSA*, multi-query self-attention: beside the branch whose query is the current
item, a second one whose query is the mean of the last L items, less swayed by a single noisy transition; the
two are mixed. ("Multi-query" means several query windows, not one key head shared by many query heads.)
*TED*, transition-aware embedding distillation: item vectors are taught the transition counts of the whole
training data (`ensuite.objectives.transitions`). Official code: https://github.com/zhuty16/MQSA-TED.

    loss = objective + lambda_kd * TED + l2 / 2 * (sum of squares of all parameters)

What differs from the released code, unless ``as_released`` is set:
- The padding column is no candidate of the training softmax.
- Layer normalisation has an epsilon of 1e-8, not 1e-24.

What differs always: dropout masks of TED's students are drawn anew, independent of those of the encoder's
input (whether the authors share them is not known to us); the ranking leaves out the user's whole
history, not its last 50 events.

Our choices, where the paper says nothing: linear layers start as PyTorch starts them; with cosine scores
(not in the paper) the mix of both branches is normalised, and TED's students are unit vectors, not scaled by
sqrt(D), so that their scores, like the teacher's counts, are at most 1 / tau.

Published, full ranking: Beauty HR@5 .0752, NDCG@5 .0534; Sports NDCG@5 .0320.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.data.transitions import count_transitions
from ensuite.errors import EnsuiteError
from ensuite.models._growing import with_rows
from ensuite.models.base import Retriever
from ensuite.models.sasrec import FeedForward
from ensuite.nn.attention import SelfAttention, last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, PositionTable, Similarity, similar
from ensuite.objectives import Objective
from ensuite.objectives.cross_entropy import CrossEntropy
from ensuite.objectives.transitions import RowNorm, Support, TransitionDistillation


@config
class MQSATEDConfig:
    """Shape of the two branches, the window of the long query, and the distillation; defaults are the
    paper's."""

    dim: int = 64
    """Width D of items and layers."""
    blocks: int = 1
    """Number of attention blocks in each branch."""
    heads: int = 1
    """Attention heads; must divide `dim`."""
    max_length: int = 50
    """Most recent events that are read."""
    dropout: float = 0.5
    """Share of elements dropped after the embedding and after each feed-forward layer."""
    attention_dropout: float | None = None
    """Share of attention weights dropped; null = dropout."""
    inner_dropout: float | None = None
    """Share of elements dropped inside the feed-forward layer; null = dropout."""
    window: int = 3
    """Events whose mean is the long query, L, the current one included; 1 = both branches ask short."""
    alpha: float = 0.5
    """Weight of the short-query branch; the long-query branch has 1 - alpha. A branch of weight 0 is not
    built."""
    lambda_kd: float = 0.1
    """Weight of the distillation of transitions; 0 = none."""
    tau: float = 0.1
    """Temperature of the distillation, of teacher and student."""
    time_span: int = 1
    """An item is counted as following when it comes within so many events."""
    row_norm: RowNorm = "max"
    """Divide an item's transition counts by their largest (released code) or by their sum."""
    support: Support = "all"
    """Whether items that never followed keep a share of the teacher's mass: all (released code) or edges."""
    count_whole: bool = False
    """Count transitions in whole training sequences, not in their last `max_length` events (released
    code)."""
    distilled: int = 0
    """Distil only so many input events of a batch, drawn at random: the same loss in expectation, for less
    time. 0 = all."""
    l2: float = 1e-4
    """Weight of half the sum of squares of all parameters, added to the loss."""
    similarity: Similarity = "dot"
    """Score by dot product or by cosine (then give the objective a temperature)."""
    init_std: float = 0.01
    """Standard deviation of the initial item and position vectors."""
    as_released: bool = False
    """The padding column takes part in the training softmax (needs loss cross-entropy); epsilon of 1e-24."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.max_length < 1 or self.blocks < 1 or self.init_std <= 0:
            raise ValueError("dim, max_length, blocks and init_std are positive")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        for rate in (self.dropout, self.attention_dropout, self.inner_dropout):
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"dropout = {rate}: at least 0 and below 1 is needed")
        if self.window < 1 or self.time_span < 1:
            raise ValueError("window and time_span count events: at least 1")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}: a share, between 0 and 1")
        if self.tau <= 0:
            raise ValueError(f"tau = {self.tau}: it divides scores, so it must be above 0")
        if self.lambda_kd < 0 or self.l2 < 0 or self.distilled < 0:
            raise ValueError("lambda_kd, l2 and distilled are at least 0")


class MQSATED(Retriever):
    """A short-query and a long-query attention branch over one item table, taught by transition counts.

    With `lambda_kd`, `fit` must have counted the transitions before `loss` is asked for.
    """

    Config = MQSATEDConfig
    summary = "Short and long attention queries, taught by transition counts"
    paper = "Zhu et al., WSDM 2024, arXiv:2311.01056"
    family = "attention"
    state = "measured"

    def __init__(self, config: MQSATEDConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        if config.as_released and objective is not None and not isinstance(objective, CrossEntropy):
            raise EnsuiteError(
                "model.as_released puts the padding column into the softmax over all items: it needs "
                "objective.loss = cross-entropy; set that, or as_released to false"
            )
        self.items = ItemTable(n_items + 1, config.dim, config.init_std)
        self.positions = PositionTable(config.max_length, config.dim, "end", config.init_std)
        self.dropout = Dropout(config.dropout)
        self.short = Branch(config, window=1) if config.alpha > 0 else None
        self.long = Branch(config, window=config.window) if config.alpha < 1 else None
        self.transitions = (
            TransitionDistillation(n_items, config.tau, config.row_norm, config.support)
            if config.lambda_kd
            else None
        )

    # -- encoder --

    def input_vectors(self, items: Tensor) -> Tensor:
        return self.items(items) * self.config.dim**0.5

    def embed(self, vectors: Tensor, history: History) -> Tensor:
        """Add positions to ``vectors`` [B, T, D]: what both branches read, [B, T, D]."""
        return self.dropout(vectors + self.positions(history.positions, history.lengths))

    def forward(self, history: History) -> Tensor:
        x = self.embed(self.input_vectors(history.items), history)
        branches = (self.short, self.long)
        return self._mix(*(None if branch is None else branch(x) for branch in branches))  # [B, T, D]

    def encode(self, history: History) -> Tensor:
        return self.encode_vectors(self.input_vectors(history.items), history)

    def encode_vectors(self, vectors: Tensor, history: History) -> Tensor:
        x, mask, lengths = self.embed(vectors, history), history.mask, history.lengths
        branches = (self.short, self.long)
        return self._mix(*(None if branch is None else branch.last(x, mask, lengths) for branch in branches))

    def _mix(self, short: Tensor | None, long: Tensor | None) -> Tensor:
        """alpha h_short E^T + (1 - alpha) h_long E^T, as one vector: both branches share the table."""
        if short is None or long is None:
            output = short if long is None else long
        else:
            output = torch.lerp(long, short, self.config.alpha)
        return similar(output, self.config.similarity)  # type: ignore[arg-type]

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return similar(self.items.weight if items is None else self.items(items), self.config.similarity)

    def with_items(self, like: Sequence[Sequence[int]]) -> MQSATED:
        """Return this model with more items (protocol `TakesItems`)."""
        return with_rows(self, like)

    # -- training --

    def fit(self, events: Events) -> None:
        if self.transitions is not None:
            last = 0 if self.config.count_whole else self.config.max_length
            self.transitions.fit(count_transitions(events, self.config.time_span, last))

    def loss(self, batch: Batch) -> Tensor:
        """Return objective + lambda_kd * TED + l2 / 2 * |theta|^2: a scalar."""
        loss = self._released_loss(batch) if self.config.as_released else super().loss(batch)
        if self.transitions is not None:
            loss = loss + self.config.lambda_kd * self.distil(batch.history)
        if self.config.l2:
            loss = loss + 0.5 * self.config.l2 * sum(p.square().sum() for p in self.parameters())
        return loss

    def _released_loss(self, batch: Batch) -> Tensor:
        """The objective over items 0..V, of which 0, padding, has a score of 0 and is never the target."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        row, position = batch.targets.nonzero(as_tuple=True)  # [N], [N]
        # [V + 2, D]: every row one further down; padding's is put in anew, since row 0 never learns
        table = F.pad(self.item_vectors()[1:], (0, 0, 2, 0))
        output = self(batch.history)[row, position]
        return self.objective(output, batch.targets[row, position] + 1, lambda _: table, row)

    def distil(self, history: History) -> Tensor:
        """Return TED's mean over the input events of ``history``, or over a draw of `distilled` of them."""
        assert self.transitions is not None
        items = history.items[history.mask]  # [N]
        if 0 < self.config.distilled < len(items):
            items = items[torch.randperm(len(items), device=items.device)[: self.config.distilled]]
        counts = None
        if not (self.training and self.config.dropout):  # all events of an item are then one student
            items, counts = items.unique(return_counts=True)
        table = self.item_vectors()
        students = F.embedding(items, table)  # [N, D]
        if self.config.similarity == "dot":
            students = students * self.config.dim**0.5
        return self.transitions(self.dropout(students), items, table, counts)


class Branch(nn.Module):
    """Blocks whose queries are means over the last ``window`` events, and a last normalisation."""

    def __init__(self, config: MQSATEDConfig, window: int):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = layer_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """Read [B, T, D] causally: [B, T, D]."""
        for block in self.blocks:
            x = block(causal_mean(x, self.window), x)
        return self.norm(x)

    def last(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        """Return what `forward` gives at the last real position: [B, D]; the last block computes no other."""
        for block in self.blocks[:-1]:
            x = block(causal_mean(x, self.window), x)
        query = last_positions(x, lengths) if self.window == 1 else last_mean(x, lengths, self.window)
        return self.norm(self.blocks[-1](query, x, mask)[:, 0])


class Block(nn.Module):
    """SASRec's released block, asked by queries of its own: the normalised query is added to what it attends
    to; keys and values are not normalised, heads not projected."""

    def __init__(self, config: MQSATEDConfig):
        super().__init__()
        dim, rates = config.dim, (config.attention_dropout, config.inner_dropout)
        on_weights, inside = (config.dropout if rate is None else rate for rate in rates)
        self.query_norm = layer_norm(config)
        self.attention = SelfAttention(dim, config.heads, on_weights, causal=True, project_output=False)
        self.feed_forward_norm = layer_norm(config)
        self.feed_forward = FeedForward(dim, dim, "relu", inside, config.dropout)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Ask ``memory`` [B, T, D] by ``query`` [B, Q, D], causally or as ``mask`` [B, T] allows: [B, Q,
        D]."""
        query = self.query_norm(query)
        x = self.feed_forward_norm(query + self.attention(query, memory, mask))
        return x + self.feed_forward(x)


def layer_norm(config: MQSATEDConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.dim, eps=1e-24 if config.as_released else 1e-8)


def causal_mean(x: Tensor, window: int) -> Tensor:
    """Return at each position the mean of the last ``window`` positions, itself included: [B, T, D].

    Near the start the mean is over the positions there are; padding stands on the right and is never in it.

    >>> causal_mean(torch.tensor([[[2.0], [4.0], [9.0]]]), 2).flatten().tolist()
    [2.0, 3.0, 6.5]
    """
    if window == 1:
        return x
    age = torch.arange(x.shape[1], device=x.device)
    age = age[:, None] - age  # [T, T], how far back a position is
    seen = ((age >= 0) & (age < window)).to(x.dtype)
    return ((seen / seen.sum(1, keepdim=True)) @ x).to(x.dtype)  # under autocast too


def last_mean(x: Tensor, lengths: Tensor, window: int) -> Tensor:
    """Return `causal_mean` at each row's last real position, of ``lengths`` [B]: [B, 1, D]."""
    age = lengths[:, None] - 1 - torch.arange(x.shape[1], device=x.device)  # [B, T]
    seen = ((age >= 0) & (age < window)).to(x.dtype)
    return ((seen / seen.sum(1, keepdim=True))[:, None] @ x).to(x.dtype)
