"""H2Rec: The Best of the Two Worlds: Harmonizing Semantic and Hash IDs for Sequential Recommendation (Liu et
al., KDD 2026, https://arxiv.org/abs/2512.10388). **A reconstruction.**

An item has two identities: a vector of its own (hash id, HID), good for items that are known well, and codes
of its content that it shares with others (semantic id, SID), good for those that are not. Each has a branch
of its own, which asks the other one: the views of an item by its single codes ask the sequence of HIDs, and a
gate weighs coarse and fine answers; the sequence of HIDs asks that of SIDs. SASRec's blocks read both, and an
item is the two vectors beside each other: scores are dot products. Two further losses bring the HIDs of like
items near their SIDs (code-guided alignment), and users read without some of the levels near themselves read
with all (masked granularity).

What it is made of: the abstract, summaries, and an experiment state of the authors' code
(https://github.com/ziwliu8/H2Rec), which is not the published one for certain; equations and tables of the
paper could not be read, and its tuned settings are not known. Defaults are that code's.

What differs from that code, where it is wrong:
- It takes slot n - 1 of left-padded histories for a user's last event, which of shorter histories is padding:
  the gate is then the same for everybody, and the masked-granularity loss compares constants. Here the gate
  reads every position and weighs the levels there (``legacy_index``: as released).
- Attention sees later events while every position is trained on. Here all is causal
  (``legacy_bidirectional``: as released).
- Pairs are counted in validation and test too, with two different totals. Here: see
  `ensuite.data.cooccurrence`; only training events count.
- Items that occur twice in a batch are each other's negatives in the alignment loss. Here each is there once.
- The map of the single codes' views is made after the optimiser, and never learns.

Chosen, where nothing was found: a masked level's answer, not its question, is replaced. Both tables are
scaled to ``init_std`` at the start, since vectors come in any length. Attention between the branches drops as
many weights as the blocks do. A map between widths is not narrower than its result. For ``similarity:
cosine`` each half of a vector has length 1: the score is the sum of two cosines. Pooled identities are items
as well as inputs. The code's filter of anchors and its hard negatives, which have no effect there, are left
out; so is BERT4Rec as a backbone: the two branches are causal.

Ours: ``keep_own``. Without a residual around the attention the blocks see what was asked of the past, not the
last event itself, and learn slowly.

Published: Yelp, HR@10 .6692 among 100 sampled negatives; no other figure was found. See results/.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.data.cooccurrence import PairsConfig
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models._h2rec_identities import Identities, start_of_codes
from ensuite.models._h2rec_layers import GRU, Gate, Transformer, legacy_slot, mix, start_linear
from ensuite.models._h2rec_likeness import Likeness
from ensuite.models.base import Retriever
from ensuite.models.materials import Materials
from ensuite.models.sasrec import SASRecConfig
from ensuite.nn.attention import SelfAttention, last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import PositionTable, Similarity, similar
from ensuite.objectives import Objective
from ensuite.objectives.alignment import soft_info_nce, weighted_info_nce

OF_BLOCKS = ("dim", "blocks", "heads", "inner", "max_length", "dropout", "attention_dropout", "inner_dropout")
"""Settings that are SASRec's."""


@config
class H2RecConfig:
    """Identities, how they meet, and the losses that align them."""

    level_sizes: tuple[int, ...] = ()
    """Codes of each level, without a digit that tells duplicates apart; written here by the training."""
    code_dim: int = 0
    """Width of the vectors that codes stand for; written here by the training."""
    content_dim: int = 0
    """Width of the items' content vectors; written here by the training."""
    dim: int = 128
    """Width D of HID, SID and layers; item vectors have 2 D numbers."""
    backbone: Literal["transformer", "gru"] = "transformer"
    """SASRec's blocks, or one GRU layer with a linear layer after it."""
    shared_backbone: bool = True
    """Whether one backbone reads both branches."""
    blocks: int = 2
    """Transformer: number of attention blocks."""
    heads: int = 1
    """Transformer: attention heads; must divide `dim`."""
    inner: int = 0
    """Width of the feed-forward layers, or of the GRU's state; 0 = dim."""
    cross_heads: int = 4
    """Heads of the attention between the branches; must divide `dim`."""
    max_length: int = 200
    """Most recent events that are read, L."""
    dropout: float = 0.5
    """Share of elements dropped after the embedding and after each layer."""
    attention_dropout: float | None = None
    """Share of attention weights dropped, between the branches too; null = dropout."""
    inner_dropout: float | None = None
    """Share of elements dropped inside the feed-forward layer; null = dropout."""
    similarity: Similarity = "dot"
    """Score by dot product, or by the sum of the branches' cosines (then give the objective a
    temperature)."""
    init_std: float = 0.02
    """Standard deviation of the initial HIDs, SIDs and position vectors."""
    branches: Literal["both", "hid", "sid", "sum", "mean", "concat"] = "both"
    """Two branches; one of the identities alone; or both pooled into one vector of width D before one
    backbone. But for `both` there are neither attention between branches nor alignment losses."""
    hid_start: Literal["pca", "random"] = "pca"
    """HIDs start as principal components of the content vectors (components that there are not: random), or
    at random."""
    code_start: Literal["codebooks", "random"] = "codebooks"
    """Codes start as the vectors that they stand for in the tokeniser, or at random."""
    learn_codes: bool = False
    """Whether the vectors of codes learn."""
    pool: Literal["mean", "sum", "concat"] = "mean"
    """How the vectors of an item's codes become its SID."""
    fuse_levels: bool = True
    """HID branch: the views by single codes ask the HIDs, mixed by the gate; else it is the HIDs alone."""
    gate: Literal["mlp", "static", "uniform"] = "mlp"
    """Weights of the levels: of what is read, learned numbers, or all the same."""
    guide_codes: bool = True
    """SID branch: the HIDs ask the SIDs; else it is the SIDs alone."""
    keep_own: bool = False
    """Add the HIDs themselves to what the HID branch is told, the SIDs to what the SID branch is (ours: the
    paper's attention has no residual)."""
    code_weight: float = 0.1
    """Weight of the code-guided alignment; 0 = without."""
    code_temperature: float = 0.5
    """Its cosines are divided by it."""
    pairs: PairsConfig = PairsConfig()
    """Its positives: items that occur near each other."""
    equal_codes: bool = True
    """Its positives: items with the same codes, of weight 1."""
    debias: float = 0.1
    """Taken off its denominator for each item that is no positive; 0 = as InfoNCE."""
    code_items: int = 1024
    """It reads at most so many of a batch's target items: of more, a random share."""
    mask_weight: float = 0.1
    """Weight of the masked granularity; 0 = without."""
    mask_share: float = 0.5
    """Share of the levels that are masked, at least one level."""
    masked: Literal["lowest", "highest", "random"] = "lowest"
    """Which levels are masked, by their weights after a user's last event."""
    mask_temperature: float = 1.0
    """Its logits are divided, its targets' multiplied by it."""
    legacy_index: bool = False
    """Take the released code's slot for a user's last one (see the module's notes)."""
    legacy_bidirectional: bool = False
    """Let every position see the whole history, as the released code does."""

    def __post_init__(self) -> None:
        self.as_sasrec()  # checks what they share
        if self.cross_heads < 1 or self.dim % self.cross_heads:
            raise ValueError(f"cross_heads = {self.cross_heads} does not divide dim = {self.dim}")
        if min(self.code_weight, self.mask_weight, self.debias) < 0:
            raise ValueError("code_weight, mask_weight and debias are at least 0")
        if self.code_temperature < 0.05 or self.mask_temperature <= 0:
            raise ValueError("code_temperature is at least 0.05, mask_temperature above 0")
        if not 0 <= self.mask_share <= 1 or self.code_items < 2:
            raise ValueError("mask_share is between 0 and 1, code_items at least 2")
        if self.backbone == "gru" and (self.legacy_index or self.legacy_bidirectional):
            raise ValueError("legacy_index and legacy_bidirectional are of the Transformer: not for a GRU")

    def as_sasrec(self) -> SASRecConfig:
        """Return the settings of the blocks."""
        return SASRecConfig(**{name: getattr(self, name) for name in OF_BLOCKS})

    @property
    def fuses(self) -> bool:
        """Whether views of single codes take part."""
        return self.branches == "both" and self.fuse_levels

    @property
    def masks(self) -> bool:
        """Whether the masked-granularity loss is there."""
        return self.fuses and self.mask_weight > 0

    @property
    def aligns(self) -> bool:
        """Whether the code-guided alignment is there."""
        return self.branches == "both" and self.code_weight > 0


@dataclass(frozen=True)
class Read:
    """What was made of histories for the backbones."""

    inputs: list[Tensor]  # of each branch [B, L, D]
    answers: Tensor | None = None  # [B, L, C, D], what the views by single codes were told
    gate: Tensor | None = None  # [B, L or 1, C], weights of the levels
    own: Tensor | None = None  # [B, L, D], what the answers are added to


class H2Rec(Retriever):
    """The branches of two identities before SASRec's blocks."""

    Config = H2RecConfig
    reads = ("codes", "vectors", "codebooks")
    defaults: ClassVar[dict[str, Any]] = {
        "codes": {"settings": {"levels": 4, "size": 128}, "duplicates": "shared"}
    }
    summary = "Two identities of an item, its own and that of its codes (reconstruction)"
    paper = "Liu et al., KDD 2026, arXiv:2512.10388 (reconstruction)"
    family = "attention"
    state = "reconstruction, measured"

    def __init__(self, config: H2RecConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, levels = config, len(config.level_sizes)
        if not levels or c.code_dim < 1:
            raise EnsuiteError(
                "H2Rec reads codes of items and what they stand for, and no table of codes was given; make "
                "one with `ensuite codes build` and name it with --codes.table"
            )
        if c.masks and levels < 2:
            raise EnsuiteError(
                "mask_weight: of one level of codes none is left when one is masked; give "
                "--model.mask-weight 0, or a table with more levels"
            )
        self.causal = not (c.legacy_index or c.legacy_bidirectional)  # type: ignore[misc]
        self.identities = Identities(c, n_items)
        self.positions = PositionTable(c.max_length, c.dim, "end", c.init_std)
        self.dropout = Dropout(c.dropout)
        both = c.branches == "both"
        self.backbones = nn.ModuleList(
            Transformer(c.as_sasrec()) if c.backbone == "transformer" else GRU(c.dim, c.inner or c.dim)
            for _ in range(2 if both and not c.shared_backbone else 1)
        )
        self.gate = Gate(c.gate, c.dim, levels) if c.fuses else None
        self.ask_hid = nn.ModuleList(self._cross_attention() for _ in range(levels if c.fuses else 0))
        self.ask_sid = self._cross_attention() if both and c.guide_codes else None
        self.likeness = Likeness(n_items) if c.aligns else None
        self.instead = nn.Parameter(torch.randn(levels, c.dim) * c.init_std) if c.masks else None

    def _cross_attention(self) -> SelfAttention:
        c = self.config
        dropout = c.dropout if c.attention_dropout is None else c.attention_dropout
        attention = SelfAttention(c.dim, c.cross_heads, dropout, causal=True, bias=False)
        for layer in attention.children():
            start_linear(layer)  # type: ignore[arg-type]
        return attention

    # -- what is known of the items --

    @classmethod
    def sized_for(cls, config: H2RecConfig, materials: Materials) -> H2RecConfig:
        assert materials.codes is not None
        assert materials.vectors is not None
        books = start_of_codes(config, materials)
        return dataclasses.replace(
            config,
            level_sizes=tuple(map(int, materials.codes.level_sizes[: materials.codes.content_levels])),
            code_dim=config.dim if books is None else books[0].shape[1],
            content_dim=materials.vectors.shape[1],
        )

    def take(self, materials: Materials) -> None:
        self.identities.take(materials)

    def fit(self, events: Events) -> None:
        """Count the pairs of the code-guided alignment."""
        if self.likeness is not None:
            self.likeness.count(events, self.config.pairs)

    # -- scores --

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self._join(self.identities(items))

    def forward(self, history: History) -> Tensor:
        return self._join(self._outputs(self.read(history), history, last=False))  # [B, L, 2 D]

    def encode(self, history: History) -> Tensor:
        return self._join(self._outputs(self.read(history), history, last=True))  # [B, 2 D]

    def read(self, history: History) -> Read:
        """Make what the backbones read of the histories."""
        items, mask = history.items, self._mask(history)
        streams = [self._stream(vectors, history) for vectors in self.identities(items)]
        if self.config.branches != "both":
            return Read(streams)
        hid, sid = streams
        own = streams if self.config.keep_own else [torch.zeros_like(hid)] * 2
        guided = sid if self.ask_sid is None else own[1] + self.ask_sid(hid, sid, mask)
        if self.gate is None:
            return Read([hid, guided])
        views = [self._stream(view, history) for view in self.identities.views(items)]
        answers = torch.stack([ask(view, hid, mask) for ask, view in zip(self.ask_hid, views)], 2)
        gate = self.gate(self._legacy_user(hid, history) if self.config.legacy_index else hid)
        return Read([own[0] + mix(gate, answers), guided], answers, gate, own[0])

    def _stream(self, vectors: Tensor, history: History) -> Tensor:
        """Scale, add positions and drop: [B, L, D]."""
        places = self.positions(history.positions, history.lengths)
        return self.dropout(vectors * self.config.dim**0.5 + places)

    def _mask(self, history: History) -> Tensor | None:
        """Return what may be seen where that is not just what is past: [B, L]."""
        return history.mask if self.config.legacy_bidirectional else None

    def _legacy_user(self, hid: Tensor, history: History) -> Tensor:
        """Return what the released gate reads of the stream ``hid``: [B, 1, D]."""
        padding = self.dropout(self.positions.weight[history.lengths - 1])[:, None]
        return legacy_slot(hid, history, self.config.max_length, padding)

    def _backbone(self, branch: int) -> Any:
        return self.backbones[branch % len(self.backbones)]

    def _outputs(self, read: Read, history: History, last: bool) -> list[Tensor]:
        """Return the backbones' outputs, of each branch [B, L, D], or [B, D] after the last event."""
        mask = self._mask(history)
        if last:
            return [self._backbone(n).last(x, history, mask) for n, x in enumerate(read.inputs)]
        return [self._backbone(n)(x, mask) for n, x in enumerate(read.inputs)]

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([similar(part, self.config.similarity) for part in parts], -1)

    # -- training --

    def loss(self, batch: Batch) -> Tensor:
        """Return L_rec + code_weight * L_code + mask_weight * L_mask: a scalar."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        c, history = self.config, batch.history
        row, position = batch.targets.nonzero(as_tuple=True)  # [T], [T]
        targets = batch.targets[row, position]
        last = len(row) == len(batch.targets) and bool((position == history.lengths - 1).all())
        last = last and not c.legacy_index  # which reads other positions than the last one
        read = self.read(history)
        outputs = self._outputs(read, history, last)
        asked = outputs if last else [output[row, position] for output in outputs]
        total = self.objective(self._join(asked), targets, self.item_vectors, row)
        if c.aligns:
            total = total + c.code_weight * self.code_loss(targets.unique())
        if c.masks:
            total = total + c.mask_weight * self.mask_loss(read, history, outputs[0])
        return total

    def code_loss(self, items: Tensor) -> Tensor:
        """Align the HIDs of different ``items`` [N], ascending, with the SIDs of those like them: a
        scalar."""
        assert self.likeness is not None
        c, of = self.config, self.identities
        if len(items) > c.code_items:
            drawn = torch.randperm(len(items))[: c.code_items].sort().values
            items = items[drawn.to(items.device)]
        weights = self.likeness(items, of.codes[items] if c.equal_codes else None)
        return weighted_info_nce(of.sid(items), of.hid(items), weights, c.code_temperature, c.debias)

    def mask_loss(self, read: Read, history: History, full: Tensor) -> Tensor:
        """Align users read without some of the levels with themselves read with all, the output ``full`` of
        the HID branch ([B, D], or [B, L, D]): a scalar."""
        assert read.gate is not None
        assert read.answers is not None
        assert read.own is not None
        assert self.instead is not None
        c, backbone, mask = self.config, self._backbone(0), self._mask(history)
        gate = read.gate if c.legacy_index else last_positions(read.gate, history.lengths)  # [B, 1, C]
        masked = self.masked_levels(gate[:, 0])[:, None, :, None]  # [B, 1, C, 1]
        part = read.own + mix(read.gate, torch.where(masked, self.instead, read.answers))  # [B, L, D]
        if c.legacy_index:
            part = legacy_slot(backbone(part, mask), history, c.max_length, backbone.padding)[:, 0]
            full = legacy_slot(full, history, c.max_length, backbone.padding)[:, 0]
        else:
            part = backbone.last(part, history, mask)  # [B, D]
            full = full if full.dim() == 2 else last_positions(full, history.lengths)[:, 0]
        return soft_info_nce(part, full, c.mask_temperature)

    def masked_levels(self, gate: Tensor) -> Tensor:
        """Return which levels are masked for users whose levels weigh ``gate`` [B, C]: [B, C] bool."""
        count = max(1, int(self.config.mask_share * gate.shape[1]))
        if self.config.masked == "random":
            gate = torch.rand(gate.shape).to(gate)
        order = gate.argsort(dim=1, descending=self.config.masked == "highest", stable=True)
        return torch.zeros_like(gate, dtype=torch.bool).scatter(1, order[:, :count], True)

    # -- new items --

    @property
    def codes(self) -> Tensor:
        """The codes that it reads, [V + 1, C]."""
        return self.identities.codes

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Self:
        """Return this model with more items, by their codes [N, at least C] (`TakesCodes`).

        Their HIDs are what all began as, made of their content ``vectors`` [N, E]; without these they are 0,
        and their codes alone speak for them.

        Raises
        ------
        EnsuiteError
            When a code is outside its level.
        """
        hids = self.positions.weight.new_zeros(len(codes), self.config.dim)
        if vectors is not None and self.config.hid_start == "pca":
            start = self.identities.first_hids(vectors)
            hids[:, : start.shape[1]] = start
        return self._grown(codes[:, : len(self.config.level_sizes)], hids)

    @torch.no_grad()
    def with_items(self, like: Sequence[Sequence[int]]) -> Self:
        """Return this model with more items (protocol `TakesItems`): a HID is the mean of those named; codes
        have no mean, and are those of the one named whose SID is nearest to the mean SID."""
        of, codes = self.identities, []
        for named in like:
            rows = torch.tensor(list(named), device=of.codes.device)
            sids = of.sid(rows)
            codes.append(of.codes[rows[(sids - sids.mean(0)).square().sum(1).argmin()]])
        hids = self.positions.weight.new_zeros(len(like), self.config.dim)
        if of.items is not None:
            hids = of.items.grown(like, self.config.similarity).weight[-len(like) :]
        return self._grown(torch.stack(codes), hids)

    def _grown(self, codes: Tensor, hids: Tensor) -> Self:
        grown = copy.copy(self)  # shares every part
        grown._modules = {**self._modules, "identities": self.identities.extended(codes, hids)}
        grown.n_items = self.n_items + len(codes)
        return grown
