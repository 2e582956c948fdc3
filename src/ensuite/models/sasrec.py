"""SASRec: Self-Attentive Sequential Recommendation (Kang & McAuley, ICDM 2018,
https://arxiv.org/abs/1808.09781).

A small causal Transformer reads the items of a user in order; the next item is the one whose vector has the
largest dot product with the output at the last position. Official code: https://github.com/kang205/SASRec.

Also here, as settings of the same encoder:
gSASRec (Petrov & Macdonald, RecSys 2023, https://arxiv.org/abs/2308.07192): ``objective.loss: gbce`` with 256
negatives; the cross-entropy SASRec of "Turning Dross Into Gold Loss" (Klenitskiy & Vasilev, RecSys 2023): the
default objective; eSASRec's LiGR layers (https://arxiv.org/abs/2508.06450): ``residual: gated, activation:
swiglu``.

What differs from the paper, unless ``as_released`` is set:
- Blocks are plain pre-norm ones, x + f(LN(x)), as the paper writes them. The released code normalises the
  query only, adds the *normalised* query back, has no output projection, and feeds the normalised input
  around the feed-forward layer.
- The default objective is cross-entropy over the catalogue, not one negative with binary cross-entropy: the
  choice of the loss is worth more than any detail of the block (recipes/sasrec holds both).
- Padding is masked by item id, not by vectors that happen to sum to zero.

Reproduced: ML-1M, full ranking, cross-entropy: HR@10 .3152, NDCG@10 .1821 ("Dross to Gold", table 2). See
results/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.models._growing import with_rows
from ensuite.models.base import Retriever
from ensuite.nn.attention import SelfAttention, last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, PositionsFrom, PositionTable, Similarity, similar
from ensuite.objectives import Objective


@config
class SASRecConfig:
    """Shape of the encoder; defaults are the paper's for ML-1M, but for the window, which suits most logs."""

    dim: int = 64
    """Width D of items and layers."""
    blocks: int = 2
    """Number of attention blocks; 0 scores by the last item alone."""
    heads: int = 1
    """Attention heads; must divide `dim`."""
    inner: int = 0
    """Width of the feed-forward layer; 0 = dim."""
    max_length: int = 50
    """Most recent events that are read, L."""
    dropout: float = 0.2
    """Share of elements dropped after the embedding and after each layer."""
    attention_dropout: float | None = None
    """Share of attention weights dropped; null = dropout."""
    inner_dropout: float | None = None
    """Share of elements dropped inside the feed-forward layer; null = dropout."""
    positions: PositionsFrom = "end"
    """Learned positions counted from the newest event (the paper's left padding), from the start, or none."""
    tied: bool = True
    """Whether items have one vector for input and output, or two."""
    similarity: Similarity = "dot"
    """Score by dot product or by cosine (then give the objective a temperature)."""
    norm: Literal["pre", "post"] = "pre"
    """Layer normalisation before each layer, or after its residual."""
    residual: Literal["plain", "none", "gated"] = "plain"
    """x + f(x), f(x), or x + sigmoid(W x) * f(x) (LiGR)."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Of the feed-forward layer."""
    scale_input: bool = True
    """Multiply item vectors by sqrt(dim) before the positions are added."""
    init_std: float = 0.02
    """Standard deviation of the initial item and position vectors."""
    as_released: bool = False
    """Blocks exactly as the authors' code computes them (see the module's notes); needs norm pre, residual
    plain, relu."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.max_length < 1 or self.blocks < 0 or self.inner < 0 or self.init_std <= 0:
            raise ValueError("dim, max_length and init_std are positive, blocks and inner at least 0")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        for rate in (self.dropout, self.attention_dropout, self.inner_dropout):
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"dropout = {rate}: at least 0 and below 1 is needed")
        if self.as_released and (self.norm, self.residual, self.activation) != ("pre", "plain", "relu"):
            raise ValueError(
                "as_released fixes the block: leave norm, residual and activation at their defaults"
            )


class SASRec(Retriever):
    """The encoder of SASRec with a tied (or separate) item table."""

    Config = SASRecConfig
    summary = "Causal Transformer over item ids; with gBCE: gSASRec"
    paper = "Kang & McAuley, ICDM 2018, arXiv:1808.09781"
    family = "attention"
    state = "measured"

    def __init__(self, config: SASRecConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        self.items = ItemTable(n_items + 1, config.dim, config.init_std)
        self.output_items = None if config.tied else ItemTable(n_items + 1, config.dim, config.init_std)
        self.positions = (
            None
            if config.positions == "none"
            else PositionTable(config.max_length, config.dim, config.positions, config.init_std)
        )
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim, eps=1e-8)

    @property
    def stack(self) -> list[Block]:
        """The blocks, lowest first."""
        return cast("list[Block]", list(self.blocks))

    def input_vectors(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...] as they are before positions are added: [..., D]."""
        x = self.items(items)
        return x * self.config.dim**0.5 if self.config.scale_input else x

    def embed(self, history: History, vectors: Tensor | None = None) -> Tensor:
        """Return the sum of item vectors (or ``vectors`` in their place) and position vectors: [B, L, D]."""
        x = self.input_vectors(history.items) if vectors is None else vectors
        if self.positions is not None:
            x = x + self.positions(history.positions, history.lengths)
        return self.dropout(x)

    def forward(self, history: History) -> Tensor:
        x = self.embed(history)
        for block in self.blocks:
            x = block(x)
        return similar(self.norm(x), self.config.similarity)  # [B, L, D]

    def encode(self, history: History) -> Tensor:
        """Return the output after the last event, [B, D]; the last block is computed at that position
        only."""
        return self.encode_vectors(None, history)

    def encode_vectors(self, vectors: Tensor | None, history: History) -> Tensor:
        """Return the output after the last event, [B, D], with ``vectors`` [B, L, D] for the items' own."""
        x, mask, lengths = self.embed(history, vectors), history.mask, history.lengths
        for block in self.blocks[:-1]:
            x = block(x)
        last = last_positions(x, lengths)  # [B, 1, D]
        if self.blocks:
            last = self.blocks[-1](last, memory=x, mask=mask)
        return similar(self.norm(last[:, 0]), self.config.similarity)

    def begin(self, history: History) -> tuple[Tensor, Any]:
        """Read the histories (protocol `Stepwise`); the state is what each block reads, and where.

        A single query against a block's inputs is cheaper than keys and values that are first projected
        (`SelfAttention`). Tokens bring their own positions, so the window may be full.
        """
        x, mask, seen = self.embed(history), history.mask, []
        for block in self.stack[:-1]:
            seen.append(block.seen(x))
            x = block(x)
        last = last_positions(x, history.lengths)
        for block in self.stack[-1:]:
            seen.append(block.seen(x))
            last = block.read(last, seen[-1], mask)
        return similar(self.norm(last[:, 0]), self.config.similarity), (seen, mask)

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read ``token`` [B, D] after all that was read before (protocol `Stepwise`)."""
        seen, mask = state  # of each block [B, L, D]; [B, L]
        x, mask, grown = token[:, None], F.pad(mask, (0, 1), value=True), []
        for block, past in zip(self.stack, seen):
            grown.append(torch.cat([past, block.seen(x)], 1))
            x = block.read(x, grown[-1], mask)
        return similar(self.norm(x[:, 0]), self.config.similarity), (grown, mask)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        table = self.items if self.output_items is None else self.output_items
        return similar(table.weight if items is None else table(items), self.config.similarity)

    def with_items(self, like: Sequence[Sequence[int]]) -> SASRec:
        """Return this model with more items (protocol `TakesItems`)."""
        if self.output_items is not None:
            raise EnsuiteError(
                "a sasrec with tied = false has two tables, and likeness in one says nothing of the other; "
                "train with model.tied: true, or again with the new items"
            )
        return with_rows(self, like)


class Block(nn.Module):
    """Self-attention, then a position-wise feed-forward layer, each with a residual (section 3.2 of the
    paper)."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        dim = config.dim
        self.config = config
        self.attention_norm = nn.LayerNorm(dim, eps=1e-8)
        on_weights = config.dropout if config.attention_dropout is None else config.attention_dropout
        inside = config.dropout if config.inner_dropout is None else config.inner_dropout
        self.attention = SelfAttention(
            dim, config.heads, on_weights, causal=True, project_output=not config.as_released
        )
        self.attention_dropout = Dropout(0.0 if config.as_released else config.dropout)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=1e-8)
        self.feed_forward = FeedForward(dim, config.inner or dim, config.activation, inside, config.dropout)
        gated = config.residual == "gated"
        self.attention_gate = nn.Linear(dim, dim) if gated else None
        self.feed_forward_gate = nn.Linear(dim, dim) if gated else None

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Update positions ``x`` [B, Q, D], which see ``memory`` [B, L, D] (default: x, causally)."""
        return self.read(x, None if memory is None else self.seen(memory), mask)

    def seen(self, x: Tensor) -> Tensor:
        """Return what the attention of other positions reads of positions ``x``: [B, L, D]."""
        return x if self.config.as_released or self.config.norm == "post" else self.attention_norm(x)

    def read(self, x: Tensor, seen: Tensor | None, mask: Tensor | None) -> Tensor:
        """Do as `forward`, with what `seen` gave in place of the memory."""
        c = self.config
        if c.as_released:
            query = self.attention_norm(x)  # only the query is normalised, and it is what is added back
            x = query + self.attention(query, x if seen is None else seen, mask)
            x = self.feed_forward_norm(x)
            return x + self.feed_forward(x)
        if c.norm == "pre":
            attended = self.attention_dropout(self.attention(self.attention_norm(x), seen, mask))
            x = self._add(x, attended, self.attention_gate)
            return self._add(x, self.feed_forward(self.feed_forward_norm(x)), self.feed_forward_gate)
        attended = self.attention_dropout(self.attention(x, seen, mask))
        x = self.attention_norm(self._add(x, attended, self.attention_gate))
        return self.feed_forward_norm(self._add(x, self.feed_forward(x), self.feed_forward_gate))

    def _add(self, x: Tensor, update: Tensor, gate: nn.Module | None) -> Tensor:
        if self.config.residual == "none":
            return update
        return x + update if gate is None else x + torch.sigmoid(gate(x)) * update


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, the same at every position (equation 7)."""

    def __init__(self, dim: int, inner: int, activation: str, inner_dropout: float, dropout: float):
        super().__init__()
        self.swiglu = activation == "swiglu"
        functions: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swiglu": F.silu}
        self.activation = functions[activation]
        self.up = nn.Linear(dim, 2 * inner if self.swiglu else inner, bias=not self.swiglu)
        self.down = nn.Linear(inner, dim, bias=not self.swiglu)
        self.inner_dropout = Dropout(inner_dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        h = self.up(x)
        if self.swiglu:
            gate, value = h.chunk(2, -1)
            h = self.activation(gate) * value
        else:
            h = self.activation(h)
        return self.dropout(self.down(self.inner_dropout(h)))
