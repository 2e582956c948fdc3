"""RecGPT: A Foundation Model for Sequential Recommendation (Jiang et al., 2025,
https://arxiv.org/abs/2506.06270). Not to be confused with Taobao's reports of the same name.

An item is K tokens of its text: the text's vector is cut into K parts and each is rounded to one grid (FSQ),
so that every part of every item of every shop is written in one vocabulary. A GPT-2 reads the tokens of the
history; the token at position t says the one at t + K, so that one forward pass gives all K tokens of the
next item. Nothing of it belongs to a catalogue: trained on some datasets, it recommends in one that it has
never seen (`ensuite transfer`).

The official code (HKUDS/RecGPT) names no licence, and served as a specification only. What differs from it:
- **Scores are exact by default** (`ranking: exact`). The tokens of an item do not depend on one another, so
  the log-probability of every item is a sum of K values looked up; the released beam search reaches at most
  20 items and leaves all others tied. It is here as ``ranking: beam`` (`first_beams`, `branches`, `beams`).
- Items with the same tokens all have the same score; there, the last of them stands for all.
- Histories are padded on the right in training and in prediction alike, and positions count from the oldest
  event that is read: there, prediction pads on the left up to the longest history of the batch, and
  positions depend on who else is in it.
- Padding is no class of the softmax; there it is one, but never a label.
- Residual branches start with the smaller deviation of GPT-2 (0.02 / sqrt(2 * blocks)).
- With another tokeniser than FSQ (an ablation of the paper, which does not say which), levels have tokens of
  their own. Tokens that tell duplicates apart (`--codes.duplicates digit`) are refused: said in parallel,
  they would mean nothing.

Published (zero-shot, full ranking, history items not removed, Hit@5 / NDCG@5): Baby .0283 / .0279, Office
.0299 / .0290, Yelp .0166 / .0163, Steam .1253 / .1245. Hit@1 is 94 to 99 % of Hit@5 in all of them, and
on Steam the user's own last items again score as high: report `recency`, and the slices of repeated and
new items, beside every row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.codes.beam import Start
from ensuite.codes.parallel import narrow_search, sum_of_codes
from ensuite.codes.trie import CodeTrie
from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models.base import BlockScorer
from ensuite.models.generator import GeneratorConfig, OrderedGenerator
from ensuite.models.materials import Materials
from ensuite.nn.attention import SelfAttention
from ensuite.objectives import Objective
from ensuite.objectives.cross_entropy import chunked_cross_entropy


@config
class RecGPTConfig(GeneratorConfig):
    """Shape of the network; defaults are the paper's."""

    one_vocabulary: bool = False
    """Whether all levels share their tokens; written here by the training: yes for codes of FSQ."""
    content_dim: int = 0
    """Numbers of a content vector; written here by the training."""
    dim: int = 768
    """Width D of tokens and layers."""
    blocks: int = 3
    """Layers."""
    heads: int = 12
    """Attention heads; must divide dim."""
    inner: int = 3072
    """Width of the feed-forward layer."""
    dropout: float = 0.1
    """Share of elements dropped after the embedding, on attention weights, and after each branch."""
    max_length: int = 255
    """Most recent events that are read."""
    slices: bool = True
    """Add to each token the part of the item's content vector that it was made of."""
    block_mask: bool = True
    """Let all tokens of an item see each other; off: each sees those before it only."""
    ranking: Literal["auto", "exact", "beam"] = "exact"
    """Score every item (exact), or only those that the paper's search reaches (beam); auto: exact for
    catalogues of at most 1,000 items."""
    beams: int = 20
    """Search: tuples that are kept after every token but the first. When items are recommended by a search,
    this is its width throughout, and at least as many as are asked for are found."""
    first_beams: int = 10
    """Search that ranks: first tokens that are kept."""
    branches: int = 5
    """Search that ranks: continuations of each that are looked at."""
    constrained: bool = True
    """Search that ranks: keep to the tokens of the catalogue; off: tuples that are no item are dropped at the
    end."""
    temperature: float = 0.1
    """Divides the logits of scores, not those of the loss; it moves no item past another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.dim, self.blocks, self.heads, self.inner, self.max_length) < 1:
            raise ValueError("dim, blocks, heads, inner and max_length are at least 1")
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: at least 0 and below 1 is needed")
        if min(self.first_beams, self.branches) < 1 or self.temperature <= 0:
            raise ValueError("first_beams and branches are at least 1, temperature is positive")
        if not self.constrained and self.ranking != "beam":
            raise ValueError(f"constrained = no is about a search, not about ranking = {self.ranking}")


class RecGPT(OrderedGenerator):
    """A GPT-2 over tokens of text that says all tokens of the next item at once."""

    Config = RecGPTConfig
    reads = ("codes", "vectors")
    samples = ("every-position", "sliding", "last-position", "prefixes")
    defaults = {  # noqa: RUF012
        "codes": {"tokeniser": "fsq", "duplicates": "shared"},
        "training": {"lr": 1e-4, "weight_decay": 0.01, "betas": (0.9, 0.999)},
    }
    summary = "Foundation model: FSQ tokens of text, all of the next item's in one pass; zero-shot"
    paper = "Jiang et al., 2025, arXiv:2506.06270"
    family = "generative"
    state = "measured"
    vectors: Tensor  # [V + 1, content_dim], row 0 is 0

    def __init__(self, config: RecGPTConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, sizes = config, config.level_sizes
        self.levels = len(sizes)
        # Token 0 is padding; code 0 of a level is the token after its first row.
        self.first_rows = (
            [0] * len(sizes) if c.one_vocabulary else [sum(sizes[:i]) for i in range(len(sizes))]
        )
        tokens = max(first + size for first, size in zip(self.first_rows, sizes))
        self.register_buffer("offsets", torch.tensor(self.first_rows) + 1, persistent=False)
        self.offsets: Tensor  # [L] int64
        self.tokens = nn.Embedding(1 + tokens, c.dim)
        self.token_norm = nn.LayerNorm(c.dim)
        self.positions = nn.Embedding(c.max_length * self.levels, c.dim)
        self.project_slice: nn.Linear | None = None
        if c.slices:
            if not c.content_dim or c.content_dim % self.levels:
                raise EnsuiteError(
                    f"RecGPT reads a part of the content vector with each of {self.levels} tokens, which do "
                    f"not divide its {c.content_dim} numbers; make codes of other levels, or leave the parts "
                    "out: --model.no-slices"
                )
            self.project_slice = nn.Linear(c.content_dim // self.levels, c.dim, bias=False)
            self.slice_norm = nn.LayerNorm(c.dim)
            self.register_buffer("vectors", torch.zeros(n_items + 1, c.content_dim))
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.blocks))
        self.norm = nn.LayerNorm(c.dim)
        self.head = nn.Linear(c.dim, 1 + tokens, bias=False)  # row 0, padding, is no class
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            for branch in (layer.attention.output, layer.down):  # type: ignore[union-attr]
                nn.init.normal_(branch.weight, std=0.02 / (2 * c.blocks) ** 0.5)  # type: ignore[arg-type, union-attr]

    @classmethod
    def sized_for(cls, config: Any, materials: Materials) -> Any:
        assert materials.codes is not None
        assert materials.vectors is not None
        return dataclasses.replace(
            super().sized_for(config, materials),
            one_vocabulary=materials.codes.provenance.get("tokeniser", {}).get("kind") == "fsq",
            content_dim=materials.vectors.shape[1],
        )

    def take(self, materials: Materials) -> None:
        super().take(materials)
        assert materials.codes is not None
        if materials.codes.policy == "digit":
            raise EnsuiteError(
                "RecGPT says all codes of an item at once, and the last level of this table only counts "
                "items with equal codes; build the codes with --duplicates shared"
            )
        if self.project_slice is not None:
            assert materials.vectors is not None
            self.vectors = materials.vectors[: self.n_items + 1].to(self.vectors)

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Self:
        """Do as `Generator.with_codes`; ``vectors`` [N, content_dim] are the new items' content, read unless
        `slices` is off."""
        grown = super().with_codes(codes)
        if self.project_slice is not None:
            if vectors is None or vectors.shape != (len(codes), self.config.content_dim):
                raise EnsuiteError(
                    f"RecGPT reads content vectors of {self.config.content_dim} numbers with the codes of "
                    f"items; give those of all {len(codes)} new items"
                )
            grown._buffers["vectors"] = torch.cat([self.vectors, vectors.to(self.vectors)])
        return grown

    # -- the network --

    def forward(self, history: History) -> Tensor:
        """Encode every token: [B, n, L, D]; what stands at padded positions is not defined."""
        x = self.embed(history.items)  # [B, n * L, D]
        x = x + self.positions.weight[: x.shape[1]]
        return self.encode(x, self.block_mask(x.shape[1])).unflatten(1, (-1, self.levels))

    def embed(self, items: Tensor) -> Tensor:
        """Return what enters the network for ``items`` [B, n], before positions are added: [B, n * L, D]."""
        codes = self.codes[items].long()  # [B, n, L]
        tokens = torch.where(codes < 0, 0, codes + self.offsets).flatten(1)  # [B, n * L]
        x = self.token_norm(self.tokens(tokens))
        if self.project_slice is not None:
            parts = self.vectors[items].unflatten(2, (self.levels, -1)).flatten(1, 2)  # [B, n * L, d]
            x = x + self.slice_norm(self.project_slice(parts)) * (tokens > 0)[..., None]
        return x

    def encode(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layers over ``x`` [B, T, D]; ``mask`` [1 or B, T, T] is True at what may be seen."""
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def block_mask(self, length: int) -> Tensor | None:
        """Return what each of ``length`` tokens sees: its own item whole and all before, [1, T, T] bool;
        None: all tokens before it."""
        if not self.config.block_mask:
            return None
        item = torch.arange(length, device=self.offsets.device) // self.levels
        return (item[:, None] >= item)[None]

    def classes(self, level: int) -> Tensor:
        """Return the vectors that say the codes of ``level``, after a row that is no class: [1 + K, D]."""
        first = self.first_rows[level]
        return self.head.weight[first : first + 1 + self.config.level_sizes[level]]

    # -- training --

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the targets' codes, the mean over targets and levels: a scalar."""
        row, position = batch.targets.nonzero(as_tuple=True)
        hidden = self(batch.history)[row, position]  # [T, L, D]
        codes = self.codes[batch.targets[row, position]].long()  # [T, L]
        losses = [
            chunked_cross_entropy(
                hidden[:, level],
                self.classes(level),
                codes[:, level] + 1,
                label_smoothing=self.label_smoothing,
            )
            for level in range(self.levels)
        ]
        return torch.stack(losses).mean()

    # -- scores --

    def log_probs(self, history: History) -> list[Tensor]:
        """Return the log-probabilities of the codes of the next item, of each level [B, K]."""
        row = torch.arange(len(history.items), device=history.items.device)
        hidden = self(history)[row, history.lengths - 1]  # [B, L, D]
        logits = [hidden[:, level] @ self.classes(level)[1:].T for level in range(self.levels)]
        return [(x.float() / self.config.temperature).log_softmax(-1) for x in logits]

    def exact_scores(self, history: History, catalogue: CodeTrie) -> Tensor:
        return sum_of_codes(self.log_probs(history), self.codes)(0, self.n_items + 1)

    def scorer(self, history: History, catalogue: CodeTrie) -> BlockScorer:
        """Return the function that scores blocks of items: exactly, or by the paper's search, whose tuples
        have their log-probability and all other items share a score below."""
        if self.exact:
            return sum_of_codes(self.log_probs(history), self.codes)
        c = self.config
        leaf, found = narrow_search(
            catalogue, self.log_probs(history), c.first_beams, c.branches, c.beams, constrained=c.constrained
        )
        reached = leaf >= 0
        worst = found.masked_fill(~reached, 0.0).amin(1, keepdim=True)  # [B, 1]
        by_leaf = (worst - 1).repeat(1, catalogue.n_tuples + 1)  # the last place is for what is no item
        by_leaf.scatter_(1, leaf.masked_fill(~reached, catalogue.n_tuples), found)
        scores = by_leaf.new_full((len(found), self.n_items + 1), -torch.inf)
        shared = catalogue.depths[-1].first_leaf.diff()  # items of each tuple
        scores[:, catalogue.order] = by_leaf[:, :-1].repeat_interleave(shared, 1)
        return lambda first, last: scores[:, first:last].clone()

    def begin(self, history: History) -> Start:
        log_probs = self.log_probs(history)
        return log_probs[0][:, None], (1, log_probs)

    def step(self, codes: Tensor, parents: Tensor, state: tuple[int, list[Tensor]]) -> tuple[Tensor, Any]:
        level, log_probs = state  # whatever was written before
        return log_probs[level][:, None].expand(-1, codes.shape[1], -1), (level + 1, log_probs)


class Layer(nn.Module):
    """A layer of GPT-2: norms stand before the branches."""

    def __init__(self, c: RecGPTConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(c.dim)
        self.attention = SelfAttention(c.dim, c.heads, c.dropout, causal=not c.block_mask)
        self.inner_norm = nn.LayerNorm(c.dim)
        self.up, self.down = nn.Linear(c.dim, c.inner), nn.Linear(c.inner, c.dim)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask))
        return x + self.dropout(self.down(F.gelu(self.up(self.inner_norm(x)), approximate="tanh")))
