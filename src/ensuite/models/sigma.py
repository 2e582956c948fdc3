"""SIGMA: Selective Gated Mamba for Sequential Recommendation (Liu et al., AAAI 2025,
https://arxiv.org/abs/2408.11451).

A state-space layer (Mamba) in place of self-attention, so that cost grows with the length and not its square.
Three things are added to it: a second reading of the history with its early part reversed (PF-Mamba), a gate
that the input sets, which weighs each reading (dense selective gate), and a small convolution with a GRU for
what is recent (FE-GRU). Official code: https://github.com/ziwliu-cityu/SIMGA. With ``flip: none, gate: none,
fe_gru: false`` it is Mamba4Rec (Liu et al. 2024, https://arxiv.org/abs/2403.03900).

What differs from the released code, unless ``as_released`` is set:
- The reversed part is the first len - r events of each history, and the last r are kept. The release reverses
  the first 45 slots of 50 whatever is in them, so that short histories are read as padding.
- The gate of the reversed reading reads that reading; the release's reads the other one's gate in one term.
- Mamba's step sizes begin as Mamba wants them (``dt_init: mamba``); the release overwrites them.
- Padding is zero to the convolution of FE-GRU, so its content never matters.
Always so: the second convolution of the release, which stops it, and the softmax that it never uses are left
out. Linear layers begin as in the release (normal, 0.02), convolution and GRU as PyTorch makes them.

Not found in the paper or its code, and chosen here: with one stream left (no flip, no FE-GRU) there is
nothing to combine, and the weights and the projection after them go, which is Mamba4Rec; a token read on
after a history (ReaRec) follows both streams.

Earlier positions of the second reading see later events. Training therefore asks for the last position only,
with every prefix a sample, as published.

Published (the authors' log, full ranking, HR@10 / NDCG@10): Beauty .0761 / .0452, ML-1M .3136 / .1831. See
results/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.errors import EnsuiteError
from ensuite.exporting import is_exporting
from ensuite.models._growing import with_rows
from ensuite.models.base import Retriever
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, Similarity, similar
from ensuite.nn.gru import GRULayer
from ensuite.nn.mamba import Mamba, MambaState
from ensuite.objectives import Objective

EPS = 1e-12  # of the layer norms, as released


@config
class SIGMAConfig:
    """Shape of the encoder; defaults are the released ones."""

    dim: int = 64
    """Width D of items and layers."""
    blocks: int = 1
    """Number of layers; with one, it has no residual around its Mamba part (released)."""
    max_length: int = 50
    """Most recent events that are read, L."""
    d_state: int = 32
    """Numbers in the state of each channel of Mamba."""
    d_conv: int = 4
    """Positions that Mamba's convolution sees."""
    expand: int = 2
    """Mamba's inner width, in multiples of `dim`."""
    dropout: float = 0.2
    """Share of elements dropped after the embedding and inside each layer."""
    gate_dropout: float = 0.2
    """Share of the gates' elements dropped."""
    flip: Literal["length", "released", "none"] = "length"
    """Second stream: the first len - `kept` events reversed, the first `flipped_slots` slots, or none."""
    kept: int = 5
    """Flip by length: the last r events, which stay in order."""
    flipped_slots: int = 45
    """Flip as released: slots reversed, of max_length, whether events or padding are in them."""
    gate: Literal["own", "released", "none"] = "own"
    """Dense selective gate: each stream by itself, the flipped one's reading the other's gate, or none."""
    fe_gru: bool = True
    """The convolution and GRU for short-term interest."""
    fe_conv: Literal["centred", "causal", "none"] = "centred"
    """The convolution before the GRU: over a position and its two neighbours (released), or the two
    before."""
    dt_init: Literal["mamba", "released"] = "mamba"
    """First step sizes: between 0.001 and 0.1, or those of normal(0, init_std) weights without bias."""
    similarity: Similarity = "dot"
    """Score by dot product or by cosine (then give the objective a temperature)."""
    init_std: float = 0.02
    """Standard deviation of the initial item vectors and linear layers."""
    as_released: bool = False
    """Flip, gate and step sizes as released, over `max_length` slots of which padding is read too."""

    def __post_init__(self) -> None:
        sizes = (self.dim, self.blocks, self.max_length, self.d_state, self.d_conv, self.expand)
        if min(sizes) < 1 or self.init_std <= 0:
            raise ValueError("dim, blocks, max_length, d_state, d_conv, expand and init_std must be positive")
        for name in ("dropout", "gate_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0 and below 1 is needed")
        if self.as_released and "none" in (self.flip, self.gate):
            raise ValueError("as_released fixes flip and gate: leave them at their defaults")
        if self.fixed_slots:
            if not 1 <= self.flipped_slots <= self.max_length:
                raise ValueError(
                    f"flipped_slots = {self.flipped_slots}: between 1 and max_length = {self.max_length}"
                )
        elif self.flip == "length" and not 0 <= self.kept < self.max_length:
            raise ValueError(
                f"kept = {self.kept} of max_length = {self.max_length} events: at least 0, and fewer than "
                "max_length; flip: none reads the history once"
            )

    @property
    def fixed_slots(self) -> bool:
        """Whether slots are flipped and not events, so that padding is read."""
        return self.as_released or self.flip == "released"


class SIGMA(Retriever):
    """Mamba over a history and its partly flipped copy, gated and joined with a GRU; tied item table."""

    Config = SIGMAConfig
    samples = ("prefixes", "last-position")  # type: ignore[assignment]
    summary = "Partially flipped Mamba with a selective gate, and a GRU for the newest events"
    paper = "Liu et al., AAAI 2025, arXiv:2408.11451"
    family = "state space"
    state = "measured"
    causal = False

    def __init__(self, config: SIGMAConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c = config
        self.items = ItemTable(n_items + 1, c.dim, c.init_std)
        self.norm = nn.LayerNorm(c.dim, EPS)
        self.dropout = Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=c.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Mamba) and c.dt_init == "mamba" and not c.as_released:
                module.reset_step_size()

    def forward(self, history: History) -> Tensor:
        """Encode every position: [B, L, D]; before the last one, with a flip, later events are seen."""
        width = history.items.shape[1]
        history = self._whole(history)
        x, streams = self._embed(self.items(history.items)), self._streams(history)
        for block in self.blocks:
            x = block(x, streams)
        return similar(x[:, :width], self.config.similarity)

    def encode(self, history: History) -> Tensor:
        """Return the output after the last event, [B, D]; the last layer is computed at that position
        only."""
        return self.encode_vectors(self.input_vectors(history.items), history)

    def input_vectors(self, items: Tensor) -> Tensor:
        """Look up ``items`` [...] as they enter the encoder: [..., D]."""
        return self.items(items)

    def encode_vectors(self, vectors: Tensor, history: History) -> Tensor:
        """Return the users' vectors [B, D], with ``vectors`` [B, L, D] in place of the items' own."""
        vectors = vectors * history.mask[..., None]
        history = self._whole(history)
        vectors = F.pad(vectors, (0, 0, 0, history.items.shape[1] - vectors.shape[1]))
        x, streams = self._embed(vectors), self._streams(history)
        *before, last = self._layers()
        for block in before:
            x = block(x, streams)
        return similar(last.last(x, streams), self.config.similarity)

    def begin(self, history: History) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Read the histories: the users' vectors [B, D], and each layer's state after the last event.

        Raises
        ------
        EnsuiteError
            With slots flipped as released: its streams end in padding, so nothing can follow the events.
        """
        if self.config.fixed_slots:
            raise EnsuiteError(
                "SIGMA as released reads padding after the last event and cannot read on from it; "
                "set flip: length (and as_released: false)"
            )
        x, streams, states = self._embed(self.items(history.items)), self._streams(history), []
        for block in self._layers():
            x, state = block.read(x, streams)
            states.append(state)
        return similar(streams.at_last(x), self.config.similarity), tuple(states)

    def step(self, token: Tensor, state: tuple[BlockState, ...]) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Read ``token`` [B, D] after both streams: the output there [B, D] and the new state."""
        states = []
        for block, before in zip(self._layers(), state):
            token, after = block.step(token, before)
            states.append(after)
        return similar(token, self.config.similarity), tuple(states)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return similar(self.items.weight if items is None else self.items(items), self.config.similarity)

    def with_items(self, like: Sequence[Sequence[int]]) -> SIGMA:
        """Return this model with more items (protocol `TakesItems`)."""
        return with_rows(self, like)

    def _layers(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _embed(self, vectors: Tensor) -> Tensor:
        return self.norm(self.dropout(vectors))  # no positions: the order is in the states

    def _whole(self, history: History) -> History:
        """Pad to ``max_length`` slots where slots are flipped, whatever the batch's longest history is."""
        if not self.config.fixed_slots:
            return history
        return History(F.pad(history.items, (0, self.max_length - history.items.shape[1])))

    def _streams(self, history: History) -> Streams:
        c, lengths, width = self.config, history.lengths, history.items.shape[1]
        mask = None if c.fixed_slots else history.mask
        if c.flip == "none":
            return Streams(lengths, mask, None, None)
        if c.fixed_slots:
            rows = torch.arange(lengths.shape[0], device=lengths.device)
            return Streams(lengths, mask, rows, flipped(torch.full_like(lengths, c.flipped_slots), width))
        if is_exporting():  # how many rows need a second stream is not known there: all
            return Streams(lengths, mask, torch.arange(lengths.shape[0]), flipped(lengths - c.kept, width))
        rows = (lengths > c.kept + 1).nonzero()[:, 0]  # what is shorter is the same in both streams
        return Streams(lengths, mask, rows, flipped(lengths[rows] - c.kept, width))


def flipped(counts: Tensor, width: int) -> Tensor:
    """Return where each slot of a stream is read from when its first ``counts`` [B] are reversed: [B, L]."""
    slot = torch.arange(width, device=counts.device)[None]
    last = counts[:, None] - 1
    return torch.where(slot <= last, last - slot, slot)


class Streams(NamedTuple):
    """How a batch is read: which of its rows have a second stream, and in which order that one goes."""

    lengths: Tensor  # [B]
    mask: Tensor | None  # [B, L], True at events; None where padding is read like them
    rows: Tensor | None  # [F], the rows of B whose flipped stream differs from the first
    order: Tensor | None  # [F, L], where each slot of the flipped stream is read from

    def both(self, x: Tensor) -> Tensor:
        """Put the flipped streams under ``x`` [B, ...]: [B + F, ...]."""
        if self.rows is None or self.order is None or not self.rows.shape[0]:
            return x
        index = self.order[..., None].expand(-1, -1, x.shape[-1])
        return torch.cat([x, x[self.rows].gather(1, index)])

    def both_lengths(self) -> Tensor:
        """Return the lengths of the rows of `both`: [B + F]."""
        return self.lengths if self.rows is None else torch.cat([self.lengths, self.lengths[self.rows]])

    def part(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Part [B + F, ...] into the first streams and the second ones, [B, ...] each."""
        n = self.lengths.shape[0]
        first = both[:n]
        if self.rows is None or not self.rows.shape[0]:
            return first, first
        return first, first.index_copy(0, self.rows, both[n:])

    def at_last(self, x: Tensor) -> Tensor:
        """Return the last event's position: [B, L, D] gives [B, D]."""
        return x[torch.arange(x.shape[0], device=x.device), self.lengths - 1]


class BlockState(NamedTuple):
    """What a layer needs of the history to read on after it."""

    main: MambaState
    flipped: MambaState | None
    recent: Tensor | None  # [B, 2, D], the last inputs of FE-GRU's convolution
    short: Tensor | None  # [B, D], the GRU's state


class Block(nn.Module):
    """The gated Mamba part, then a position-wise feed-forward layer, each followed by layer norm."""

    def __init__(self, config: SIGMAConfig):
        super().__init__()
        c, dim = config, config.dim
        self.residual = c.blocks > 1
        self.mamba = GatedMamba(c)
        self.dropout = Dropout(c.dropout)
        self.norm = nn.LayerNorm(dim, EPS)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Update all positions of ``x`` [B, L, D]."""
        return self._add(x, self.mamba(x, streams))

    def last(self, x: Tensor, streams: Streams) -> Tensor:
        """Return what `forward` gives after the last event, [B, D]."""
        return self._add(streams.at_last(x), self.mamba.last(x, streams))

    def read(self, x: Tensor, streams: Streams) -> tuple[Tensor, BlockState]:
        """Return what `forward` gives, and the state after the last event."""
        output, state = self.mamba.read(x, streams)
        return self._add(x, output), state

    def step(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Read one more position, ``x`` [B, D]."""
        output, state = self.mamba.step(x, state)
        return self._add(x, output), state

    def _add(self, x: Tensor, update: Tensor) -> Tensor:
        update = self.dropout(update)
        h = self.norm(update + x if self.residual else update)
        inner = self.dropout(F.gelu(self.up(h)))
        return self.feed_forward_norm(self.dropout(self.down(inner)) + h)


class GatedMamba(nn.Module):
    """One Mamba over both streams, a gate on each, and FE-GRU; joined by learned weights and projected."""

    def __init__(self, config: SIGMAConfig):
        super().__init__()
        c, dim = config, config.dim
        self.mamba = Mamba(dim, c.d_state, c.d_conv, c.expand)
        self.flips = c.flip != "none"
        self.gate = None if c.gate == "none" else Gate(c)
        self.short_term = ShortTerm(dim, c.fe_conv) if c.fe_gru else None
        self.weights = self.projection = None
        if self.flips or c.fe_gru:
            self.weights = nn.Parameter(torch.tensor([0.8, 0.1, 0.1]))  # main, flipped, GRU
            self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        """Read both streams: [B, L, D]."""
        both = streams.both(x)
        short = None if self.short_term is None else self.short_term(x, streams.mask)
        return self._join(*streams.part(both), *streams.part(self.mamba(both)), short)

    def last(self, x: Tensor, streams: Streams) -> Tensor:
        """Return the output after the last event only: [B, D]."""
        both, lengths = streams.both(x), streams.both_lengths()
        first, second = (streams.at_last(part) for part in streams.part(both))
        short = None
        if self.short_term is not None:
            short = streams.at_last(self.short_term(x, streams.mask))
        return self._join(first, second, *streams.part(self.mamba.last(both, lengths)), short)

    def read(self, x: Tensor, streams: Streams) -> tuple[Tensor, BlockState]:
        """Return the outputs [B, L, D], and the state after the last event."""
        both = streams.both(x)
        output, states = self.mamba.read(both, streams.both_lengths())
        (window, other_window), (hidden, other_hidden) = (streams.part(s) for s in states)
        recent = short = state = None
        if self.short_term is not None:
            short = self.short_term(x, streams.mask)
            recent, state = self.short_term.recent(x, streams.lengths), streams.at_last(short)
        main = MambaState(window, hidden)
        other = MambaState(other_window, other_hidden) if self.flips else None
        joined = self._join(*streams.part(both), *streams.part(output), short)
        return joined, BlockState(main, other, recent, state)

    def step(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """Read one more position, ``x`` [B, D], after both streams."""
        m, main = self.mamba.step(x, state.main)
        other_m, other = m, state.flipped
        if other is not None:
            other_m, other = self.mamba.step(x, other)
        recent, short = state.recent, state.short
        if self.short_term is not None and recent is not None and short is not None:
            short, recent = self.short_term.step(x, recent, short)
        return self._join(x, x, m, other_m, short), BlockState(main, other, recent, short)

    def _join(self, x: Tensor, other: Tensor, m: Tensor, other_m: Tensor, short: Tensor | None) -> Tensor:
        """Gate both readings ``m`` of streams ``x``, add them and the GRU's output by weight, project."""
        if self.gate is not None:
            g, other_g = self.gate(x, other if self.flips else None)
            m = m * g + m
            if other_g is not None:
                other_m = other_m * other_g + other_m
        if self.weights is None or self.projection is None:
            return m
        total = self.weights[0] * m
        if self.flips:
            total = total + self.weights[1] * other_m
        if short is not None:
            total = total + self.weights[2] * short
        return self.projection(total)


class Gate(nn.Module):
    """Dense selective gate: g = A SiLU(u) + B sigmoid(u) with u = W x + x; A and B serve both streams."""

    def __init__(self, config: SIGMAConfig):
        super().__init__()
        dim = config.dim
        self.crossed = config.as_released or config.gate == "released"
        self.main = nn.Linear(dim, dim)
        self.flipped = nn.Linear(dim, dim) if config.flip != "none" else None
        self.silu, self.sigmoid = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(config.gate_dropout)

    def forward(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gates of both streams, [..., D] each, from the streams themselves."""
        u = self.main(x) + x
        g = self._gate(u, u)
        if other is None or self.flipped is None:
            return g, None
        v = self.flipped(other) + other
        return g, self._gate(v, g if self.crossed else v)

    def _gate(self, u: Tensor, v: Tensor) -> Tensor:
        return self.dropout(self.silu(F.silu(u)) + self.sigmoid(torch.sigmoid(v)))


class ShortTerm(nn.Module):
    """FE-GRU: a convolution over three positions extracts features, a GRU without biases follows them."""

    def __init__(self, dim: int, conv: Literal["centred", "causal", "none"]):
        super().__init__()
        self.ahead = 1 if conv == "centred" else 0
        self.conv = None
        if conv != "none":
            bound = (3 * dim) ** -0.5  # as PyTorch begins a convolution
            self.conv = nn.Parameter(torch.empty(3, dim, dim).uniform_(-bound, bound))  # [position, in, out]
            self.conv_bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))
        self.gru = GRULayer(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Read ``x`` [B, L, D], zero where ``mask`` is False: the GRU's state at each position, [B, L, D]."""
        if self.conv is not None:
            if mask is not None and self.ahead:
                x = x * mask[..., None]
            length = x.shape[1]
            padded = F.pad(x, (0, 0, 2 - self.ahead, self.ahead))
            near = torch.cat([padded[:, k : k + length] for k in range(3)], -1)  # [B, L, 3 D]
            x = self._convolve(near)
        return self.gru(x)[0]

    def recent(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the last two events' inputs, zero where there is none: [B, 2, D]."""
        index = (lengths[:, None] + torch.arange(2, device=x.device))[..., None].expand(-1, -1, x.shape[-1])
        return F.pad(x, (0, 0, 2, 0)).gather(1, index)

    def step(self, x: Tensor, recent: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Read one more position, ``x`` [B, D]; a centred convolution has nothing after it to see."""
        seen = torch.cat([recent, x[:, None]], 1)  # [B, 3, D]
        if self.conv is not None:
            near = F.pad(seen[:, self.ahead :], (0, 0, 0, self.ahead))
            x = self._convolve(near.flatten(1))
        state = self.gru(x[:, None], state[None])[0][:, 0]
        return state, seen[:, 1:]

    def _convolve(self, near: Tensor) -> Tensor:
        assert self.conv is not None
        return F.linear(near, self.conv.flatten(0, 1).T, self.conv_bias)
