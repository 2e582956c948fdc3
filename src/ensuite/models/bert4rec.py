"""BERT4Rec (Sun et al., CIKM 2019, https://arxiv.org/abs/1904.06690).

"Sequential Recommendation with Bidirectional Encoder Representations from Transformer": a Transformer that
sees both sides predicts masked items (cloze); the next item is asked for by a mask after the last event.
Official code: https://github.com/FeiSun/BERT4Rec. Replicability study: Petrov & Macdonald, RecSys 2022,
https://arxiv.org/abs/2207.07483: training must be far longer than most implementations make it.

What differs from the released code:
- Masks are drawn anew in each epoch (`SamplesConfig`: ``mask_probability``, ``last_only``); the release
  writes ten masked copies of each window to disk and, for each window, one with only its last item masked.
- The validation item is never in the training sequence; there it is.
- The softmax is over the items; the release has [pad], [MASK] and [NO_USE] among its classes. [NO_USE], which
  never occurs in a sequence, has no row here. The token-type vector, the same at all positions, is
  `as_released` only.
- The last block is computed at the positions asked for, and no other.

Reproduced: ML-1M, full ranking: Recall@10 .2821, NDCG@10 .1516 (replicability study, Hugging Face encoder).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.models.base import Retriever
from ensuite.nn.attention import SelfAttention, last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, PositionTable
from ensuite.objectives import Objective

EPS = 1e-12  # of the layer norms, as in BERT


@config
class BERT4RecConfig:
    """Shape of the encoder; defaults are the paper's for ML-1M, but for the window, which suits most logs."""

    dim: int = 64
    """Width D of items and layers."""
    blocks: int = 2
    """Number of Transformer layers."""
    heads: int = 2
    """Attention heads; must divide `dim`."""
    inner: int = 0
    """Width of the feed-forward layer; 0 = 4 * dim."""
    max_length: int = 50
    """Most recent events that are read, L; at inference the mask takes one of these places."""
    dropout: float = 0.2
    """Share of elements dropped after the embedding and each layer."""
    attention_dropout: float = 0.2
    """Share of attention weights dropped."""
    position_embedding: bool = True
    """Add learned positions, counted from the oldest event (without: an ablation of the paper)."""
    layer_norm: bool = True
    """Layer normalisation of the embedding and after each layer (without: an ablation of the paper)."""
    residual: bool = True
    """Add a layer's input to its output (without: an ablation of the paper)."""
    feed_forward: bool = True
    """The position-wise feed-forward layer (without: an ablation of the paper)."""
    transform: bool = True
    """A dense layer with GELU and layer norm before the scores."""
    output_bias: bool = True
    """A learned bias for each item in the scores."""
    init_std: float = 0.02
    """Standard deviation of all initial weights, normal, cut at two deviations."""
    as_released: bool = False
    """Add the release's token-type vector, the same at every position."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.blocks < 1 or self.inner < 0 or self.init_std <= 0:
            raise ValueError("dim, blocks and init_std are positive, inner at least 0")
        if self.max_length < 2:
            raise ValueError(f"max_length = {self.max_length}: at least 2 is needed, an event and the mask")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        if not (0 <= self.dropout < 1 and 0 <= self.attention_dropout < 1):
            raise ValueError("dropout and attention_dropout: at least 0 and below 1 is needed")


class BERT4Rec(Retriever):
    """A bidirectional Transformer with a tied item table, whose row V + 1 is the mask."""

    Config = BERT4RecConfig
    samples = ("cloze",)  # type: ignore[assignment]
    summary = "Bidirectional Transformer that predicts masked items"
    paper = "Sun et al., CIKM 2019, arXiv:1904.06690"
    family = "attention"
    state = "measured"
    causal = False

    def __init__(self, config: BERT4RecConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c = config
        self.items = ItemTable(n_items + 2, c.dim, c.init_std)
        self.positions = None
        if c.position_embedding:
            self.positions = PositionTable(c.max_length, c.dim, "start", c.init_std)
        self.token_type = nn.Parameter(torch.randn(c.dim) * c.init_std) if c.as_released else None
        self.norm = nn.LayerNorm(c.dim, EPS) if c.layer_norm else nn.Identity()
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.blocks))
        self.transform: nn.Module = nn.Identity()
        if c.transform:
            self.transform = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU(), nn.LayerNorm(c.dim, EPS))
        self.output_bias = nn.Parameter(torch.zeros(n_items + 1)) if c.output_bias else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=c.init_std, a=-2 * c.init_std, b=2 * c.init_std)
                nn.init.zeros_(module.bias)

    def input_vectors(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...] as they are before positions are added: [..., D]."""
        return self.items(items)

    def embed(self, history: History, vectors: Tensor | None = None) -> Tensor:
        """Return item (or given), position and token-type vectors, added and normalised: [B, L, D]."""
        x = self.input_vectors(history.items) if vectors is None else vectors
        if self.positions is not None:
            x = x + self.positions(history.positions, history.lengths)
        if self.token_type is not None:
            x = x + self.token_type
        return self.dropout(self.norm(x))

    def forward(self, history: History) -> Tensor:
        """Encode every position: [B, L, D], or D + 1 with the output bias."""
        x, mask = self.embed(history), history.mask
        for block in self.blocks:
            x = block(x, x, mask)
        return self._head(x)

    def read(self, history: History, index: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Encode only the positions ``index`` [B, M], the last block too: [B, M, D or D + 1]."""
        x, mask = self.embed(history, vectors), history.mask
        for block in self.blocks[:-1]:
            x = block(x, x, mask)
        asked = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))  # [B, M, D]
        return self._head(self.blocks[-1](asked, x, mask))

    def encode(self, history: History) -> Tensor:
        """Return the output at a mask put after the last event: [B, D or D + 1]."""
        history = self.with_mask(history)
        return self.read(history, (history.lengths - 1)[:, None])[:, 0]

    def begin(self, history: History) -> tuple[Tensor, Any]:
        """Read the histories and the mask after each (protocol `Stepwise`): events see each other and
        the mask both ways; tokens come after the mask, and no event sees one."""
        history = self.with_mask(history)
        x, mask, seen = self.embed(history), history.mask, []
        for block in self.blocks[:-1]:
            seen.append(x)
            x = block(x, x, mask)
        last = self.blocks[-1](last_positions(x, history.lengths), x, mask)
        return self._head(last[:, 0]), ([*seen, x], mask)

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read ``token`` [B, D] after all that was read before (protocol `Stepwise`)."""
        seen, mask = state  # inputs of each block [B, L + 1, D]; [B, L + 1]
        x, mask, grown = token[:, None], F.pad(mask, (0, 1), value=True), []
        for block, past in zip(self.blocks, seen):
            grown.append(torch.cat([past, x], 1))
            x = block(x, grown[-1], mask)
        return self._head(x[:, 0]), (grown, mask)

    def with_mask(self, history: History) -> History:
        """Keep the last max_length - 1 events and put the mask, item V + 1, after each row's last."""
        history = history.last(self.max_length - 1)
        items = F.pad(history.items, (0, 1))  # [B, L + 1]
        return History(items.scatter(1, history.lengths[:, None], self.n_items + 1))

    def encode_vectors(self, vectors: Tensor, history: History) -> Tensor:
        """Return `encode` with ``vectors`` [B, L, D] for the items' own; the mask keeps its vector."""
        masked = self.with_mask(history)
        first = history.lengths - masked.lengths + 1  # [B], the first event that there is room for
        at = (first[:, None] + masked.positions).clamp(max=vectors.shape[1] - 1)  # [B, L' + 1]
        own = self.input_vectors(masked.items)
        given = vectors.gather(1, at[..., None].expand_as(own))
        x = torch.where((masked.items == self.n_items + 1)[..., None], own, given)
        return self.read(masked, (masked.lengths - 1)[:, None], x)[:, 0]

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the objective over the masked positions: a scalar."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        masked = batch.targets != 0  # [B, L]
        counts = masked.sum(1)
        most = int(counts.max())
        index = (~masked).byte().argsort(dim=1, stable=True)[:, :most]  # [B, M], masked positions first
        real = torch.arange(most, device=index.device) < counts[:, None]  # [B, M]
        output = self.read(batch.history, index)[real]  # [T, D or D + 1]
        row = real.nonzero()[:, 0]
        return self.objective(output, batch.targets.gather(1, index)[real], self.item_vectors, row)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Return item vectors, each with its bias at the end, which meets the 1 at the end of a user's."""
        vectors = self.items.weight[: self.n_items + 1] if items is None else self.items(items)
        if self.output_bias is None:
            return vectors
        bias = self.output_bias if items is None else self.output_bias[items]
        return torch.cat([vectors, bias[..., None]], -1)

    def _head(self, x: Tensor) -> Tensor:
        x = self.transform(x)
        return x if self.output_bias is None else F.pad(x, (0, 1), value=1.0)


class Block(nn.Module):
    """Self-attention, then a feed-forward layer, each LN(x + dropout(f(x))) (section 3.3 of the paper)."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        dim, inner = config.dim, config.inner or 4 * config.dim
        self.residual = config.residual
        self.attention = SelfAttention(dim, config.heads, config.attention_dropout, causal=False)
        self.attention_norm = nn.LayerNorm(dim, EPS) if config.layer_norm else nn.Identity()
        self.feed_forward = None
        if config.feed_forward:
            self.feed_forward = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.feed_forward_norm = nn.LayerNorm(dim, EPS) if config.layer_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Update positions ``x`` [B, Q, D], which see ``memory`` [B, L, D] where ``mask`` [B, L] is True."""
        x = self.attention_norm(self._add(x, self.attention(x, memory, mask)))
        if self.feed_forward is not None:
            x = self.feed_forward_norm(self._add(x, self.feed_forward(x)))
        return x

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        update = self.dropout(update)
        return x + update if self.residual else update
