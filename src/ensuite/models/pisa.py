"""PISA: Transformers Meet ACT-R: Repeat-Aware and Sequential Listening Session Recommendation (Tran,
Salha-Galvan, Sguerra & Hennequin, RecSys 2024, https://arxiv.org/abs/2408.16578).

The next **session** is asked for, a set of tracks most of which were heard before. Each session becomes one
vector, the mean of its tracks' vectors weighted by how active they are in the user's memory (ACT-R: recency
and frequency, co-occurrence, similarity); a causal Transformer reads the session vectors; what the user
listens to in the long run is added. Official code: https://github.com/deezer/recsys24-pisa. Presets:
recipes/pisa.

Needs a log with times, cut into sessions (`ensuite prepare --split sessions`).

What differs from the released code:
- **Time.** The released code weighs every session of a training window by base levels at the window's last
  session, so that early positions know later listens, and their positives their own. Here each session is
  weighed by what was heard before it, and the long term read when the next session begins
  (``legacy_time: true`` for the former). At test the release computes base levels once, at the first test
  session; here once for each session asked for, always.
- **Losses.** It divides the session loss twice, which makes it vanish, and the track losses by all cells of
  the batch, padding too; here both are means over what there is (``legacy_regression: true``).
- **Co-occurrence** is counted on the training sessions alone, also for test.
- **Item vectors** begin as the singular vectors of the training sessions' positive pointwise mutual
  information, of length 1, instead of Deezer's own vectors or a separate triplet training (``init: random``).
- An L2 term that is configured and never used, and further hops of spreading, likewise, are left out.

Chosen where the paper and the code leave it open: a session whose tracks have no activation at all has equal
weights; a slot of the window counts from the newest session, so that short histories keep the last slots; the
three track losses draw their negatives each for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models.base import Retriever
from ensuite.models.sasrec import Block, SASRecConfig
from ensuite.nn.act_r import (
    CoOccurrence,
    base_level,
    decay,
    item_slots,
    partial_matching,
    session_weights,
)
from ensuite.nn.embeddings import ItemTable, PositionTable
from ensuite.objectives import Objective

Part = Literal["base-level", "spreading", "partial-matching"]
TINY = 1e-8  # lengths below it are taken as this: a zero vector stays zero


@config
class PISAConfig:
    """Shape and losses; defaults are the paper's for LFM-1b."""

    dim: int = 128
    """Width D of items and layers."""
    sessions: int = 20
    """Most recent sessions that the Transformer reads, S."""
    session_length: int = 10
    """Tracks read of each session, the first N; a longer session's others count in the base level only."""
    max_length: int = 1000
    """Most recent events that are read: base level and long term look at all of them."""
    session_gap: int = 1200
    """Seconds of a pause that starts a new session, where a request does not say which session an event is
    of."""
    parts: tuple[Part, ...] = ("base-level", "spreading", "partial-matching")
    """Parts of ACT-R that weigh a session's tracks; none = equal weights."""
    decay: float = 0.5
    """Exponent of the time since a listen in the base level."""
    flattening: float = 0.5
    """Power of the combined activation (0 = equal weights)."""
    initial_gain: float = 0.1
    """Weight g that every part begins with; they are learned."""
    learn_gains: bool = True
    """Learn the weights g; false keeps them."""
    blocks: int = 2
    """Attention blocks of the short term; 0 = the session vector with its position."""
    heads: int = 2
    """Attention heads; must divide `dim`."""
    dropout: float = 0.0
    """Share of elements dropped after the input, in attention and in the feed-forward layers."""
    long_term: int = 20
    """Tracks of highest base level that make the long term; 0 = no long term, and nothing to fuse."""
    skip: bool = True
    """Add the input session's vector to the fused one."""
    lambda_task: float = 0.9
    """Share of the track losses; the rest is the session loss."""
    lambda_pos: float = 0.9
    """Among the track losses, share of the next session's own vector; the rest is the predicted one's."""
    lambda_ls: float = 0.5
    """Weight of the long term, in the loss and in the score (the paper's for Deezer: 0.4)."""
    init: Literal["ppmi-svd", "random"] = "ppmi-svd"
    """Item vectors at the start, of length 1: from co-occurrence in training sessions, or random."""
    legacy_time: bool = False
    """Weigh every session of a window by base levels at the window's end, as the released code does (a leak
    in training)."""
    legacy_regression: bool = False
    """Divide the losses as the released code does, which leaves nothing of the session loss."""

    def __post_init__(self) -> None:
        for name in ("dim", "sessions", "session_length", "session_gap", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        for name in ("blocks", "long_term", "lambda_ls", "decay", "flattening", "initial_gain"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0 is needed")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        for name in ("lambda_task", "lambda_pos"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: a share, between 0 and 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: at least 0 and below 1 is needed")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts = {', '.join(self.parts)}: each once")


@dataclass(frozen=True)
class Window:
    """The last sessions of each history as a grid, oldest first, padded on the right.

    Slot k of R = W + 1 is a session, or, after a history's last one, the request: a moment without tracks.
    """

    tracks: Tensor  # [B, R, N] int64, 0 = padding
    lengths: Tensor  # [B] int64, sessions of each row
    heard: Tensor  # [B, R, N] float32, base level of each track at the beginning of its slot, a share
    long_items: Tensor  # [B, R, K] int64, tracks of highest base level when the slot begins, 0 where fewer
    long_weights: Tensor  # [B, R, K] float32, their shares
    slot: Tensor  # [B, L] int64, slot of each event; below 0 before the window


@dataclass(frozen=True)
class Output:
    """What the model makes of the first S slots of a window."""

    fused: Tensor  # z [B, S, D], of length 1
    short: Tensor  # st [B, S, D], of length 1
    long: Tensor  # lt [B, S, D], of length 1, or 0 where nothing was heard before


class PISA(Retriever):
    """Session Transformer over ACT-R weighted session vectors; score(v) = <z + lambda_ls lt, m_v>."""

    Config = PISAConfig
    samples: ClassVar[tuple[str, ...]] = ("sessions",)
    summary = "Repeat-aware next session: ACT-R memory weights in a Transformer over sessions"
    paper = "Tran et al., RecSys 2024, arXiv:2408.16578"
    family = "sessions"
    state = "measured"
    causal = False  # over sessions it is; a track shares the output of its whole session
    defaults: ClassVar[Mapping[str, Any]] = {
        "objective": {"loss": "bpr", "negatives": 1, "sampler": "popularity", "popularity_power": 0.5},
        "samples": {"stride": 5},
        "training": {"batch_size": 512, "epochs": 100, "lr": 1e-3},
    }
    gains: Tensor  # [P], a parameter or a buffer

    def __init__(self, config: PISAConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        self.items = ItemTable(n_items + 1, config.dim)
        with torch.no_grad():
            self.items.weight.copy_(F.normalize(self.items.weight, dim=-1))
        self.co_occurrence = CoOccurrence(n_items)
        gains = torch.full((len(config.parts),), config.initial_gain)
        if config.learn_gains:
            self.gains = nn.Parameter(gains)
        else:
            self.register_buffer("gains", gains)
        self.positions = PositionTable(config.sessions, config.dim, "end")
        block = SASRecConfig(
            dim=config.dim, heads=config.heads, dropout=config.dropout, as_released=True
        )  # LayerNorm on the queries alone, no output projection
        self.blocks = nn.ModuleList(Block(block) for _ in range(config.blocks))
        self.fusion = nn.Linear(2 * config.dim, 2) if config.long_term else None

    def needs_times(self) -> bool:
        return True

    def reads_request_time(self) -> bool:
        return True

    def fit(self, events: Events) -> None:
        """Count co-occurrence in the training sessions, and begin the item vectors from it."""
        if events.time is None or events.session is None:
            raise EnsuiteError(
                "pisa reads sessions and times: prepare the log with --split sessions, --time COLUMN, and "
                "--session COLUMN or --session-gap 20m"
            )
        counts = self.co_occurrence.count(events, self.config.session_length)
        if not counts.nnz:
            raise EnsuiteError(
                "pisa: every training session holds one item only, so nothing occurs together; prepare with "
                "a longer --session-gap, or with --session-min 2"
            )
        if self.config.init == "ppmi-svd":
            vectors = ppmi_vectors(counts, self.config.dim).to(self.items.weight.device)
            with torch.no_grad():
                known = vectors.norm(dim=1) > TINY  # the others keep their random vectors
                self.items.weight[known] = F.normalize(vectors[known], dim=-1)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.items.weight if items is None else self.items(items)

    # -- reading a history -------------------------------------------------------------------------

    def window(self, history: History, slots: int) -> Window:
        """Lay the last ``slots`` sessions (fewer, where no history has so many) on a grid and compute the
        base levels when each begins, and when the next one is asked for: R = slots + 1 moments."""
        c = self.config
        items, mask = history.items, history.mask
        session, start = self._sessions(history)  # [B, L] each
        count = session.amax(1) + 1  # [B]
        slots = min(slots, int(count.max()))
        lengths = count.clamp(max=slots)
        slot = torch.where(mask, session - (count - lengths)[:, None], -1)  # [B, L]
        place = history.positions - session_starts(session)  # position within the session: [B, L]

        rows, n_moments = len(items), slots + 1
        inside = (slot >= 0) & (place < c.session_length)
        row, column = inside.nonzero(as_tuple=True)
        at = row, slot[row, column], place[row, column]
        tracks = items.new_zeros(rows, n_moments, c.session_length)
        tracks[at] = items[row, column]

        moment = history_end(history)[:, None].expand(-1, n_moments).clone()  # [B, R] seconds; the request's
        first = inside & (place == 0)
        row_, column_ = first.nonzero(as_tuple=True)
        moment[row_, slot[row_, column_]] = start[row_, column_]
        limit = torch.arange(n_moments, device=items.device)[None].expand(rows, -1)  # slots before it count
        if c.legacy_time:
            last = lengths[:, None]
            moment, limit = moment.gather(1, last).expand_as(moment), last.expand_as(limit)
        known = mask[:, None] & (slot[:, None] < limit[..., None])  # [B, R, L]
        listens = decay(moment[..., None] - start[:, None], c.decay) * known
        which, owners = item_slots(items)
        level = base_level(which, owners.shape[1], listens)  # [B, R, U]
        level = level / level.sum(-1, keepdim=True).clamp(min=1e-30)
        places = which.new_zeros(tracks.shape)
        places[at] = which[row, column]
        heard = level.gather(2, places) * (tracks > 0)
        # Tracks of one session have one level. Of those the lower row comes first, whatever else a history
        # holds: the bits of a positive float order as it does, and leave room for the item.
        order = (level.view(torch.int32).long() << 31) - owners[:, None]
        best = order.topk(min(c.long_term, owners.shape[1]), dim=2).indices  # [B, R, K]
        weights = level.gather(2, best)
        long_items = owners[:, None].expand(-1, n_moments, -1).gather(2, best) * (weights > 0)
        return Window(tracks, lengths, heard, long_items, weights, slot)

    def _sessions(self, history: History) -> tuple[Tensor, Tensor]:
        """Return each event's session number (at padding the last one's) and when it began: [B, L]."""
        if history.times is None:
            raise EnsuiteError("pisa reads times: give (item id, time) tuples")
        mask, times = history.mask, history.times
        if history.sessions is None:
            new = torch.zeros_like(times)
            new[:, 1:] = (times[:, 1:] - times[:, :-1] > self.config.session_gap) & mask[:, 1:]
            session = new.cumsum(1)
        else:
            session = (history.sessions * mask).cummax(1).values
        return session, times.gather(1, session_starts(session))

    def weigh(self, window: Window) -> Tensor:
        """Return the weight of every track in its session: [B, R, N]."""
        parts = [
            window.heard
            if part == "base-level"
            else self.co_occurrence.spread(window.tracks)
            if part == "spreading"
            else partial_matching(self.items(window.tracks))
            for part in self.config.parts
        ]
        mask = window.tracks > 0
        stacked = torch.stack(parts) if parts else window.heard.new_zeros(0, *window.tracks.shape)
        return session_weights(stacked, self.gains, self.config.flattening, mask)

    def session_vectors(self, window: Window) -> Tensor:
        """Return the weighted mean of each session's tracks: [B, R, D]."""
        flat = window.tracks.flatten(0, 1)  # [B R, N]
        weights = self.weigh(window).flatten(0, 1)
        return _bags(flat, weights, self.items.weight).unflatten(0, window.tracks.shape[:2])

    # -- the encoder -------------------------------------------------------------------------------

    def run(self, window: Window, vectors: Tensor, lengths: Tensor) -> Output:
        """Read the vectors [B, S, D] of the first S slots of ``window``, S = R - 1, ``lengths`` [B] of them
        real."""
        c = self.config
        n = vectors.shape[1]
        slots = torch.arange(n, device=vectors.device)[None]
        real = (slots < lengths[:, None])[..., None]  # [B, S, 1]
        x = (c.dim**0.5 * vectors + self.positions(slots, lengths)) * real
        for block in self.blocks:
            x = block(x)
        short = unit(x)
        if self.fusion is None:
            fused, long = short, torch.zeros_like(short)
        else:
            # Slot k predicts the session of slot k + 1: it knows what was heard until that begins.
            bags = window.long_items[:, 1:].flatten(0, 1), window.long_weights[:, 1:].flatten(0, 1)
            long = unit(_bags(*bags, self.items.weight)).unflatten(0, (len(vectors), n))
            share = self.fusion(torch.cat([long, short], -1)).softmax(-1)  # [B, S, 2]
            fused = share[..., :1] * long + share[..., 1:] * short
        return Output(unit(fused + vectors) if c.skip else unit(fused), short, long)

    def forward(self, history: History) -> Tensor:
        """Return for every event the vector that predicts the session after its own, [B, L, D]; events before
        the last S sessions have none, that is zero."""
        window = self.window(history, self.config.sessions)
        user = self._users(window)  # [B, S, D]
        index = window.slot.clamp(min=0)[..., None].expand(-1, -1, user.shape[2])
        return user.gather(1, index) * (window.slot >= 0)[..., None]

    def encode(self, history: History) -> Tensor:
        window = self.window(history, self.config.sessions)
        user = self._users(window)
        return user[torch.arange(len(user), device=user.device), window.lengths - 1]

    def _users(self, window: Window) -> Tensor:
        out = self.run(window, self.session_vectors(window)[:, :-1], window.lengths)
        return out.fused + self.config.lambda_ls * out.long

    # -- training ----------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> Tensor:
        """Return the track losses and the session loss of the sessions with targets, summed: a scalar."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        c = self.config
        # The window's last session is asked for, not read: S + 1 of them, and no request after it.
        window = self.window(batch.history, c.sessions + 1)
        asked = torch.zeros_like(window.tracks[:, :-1, 0], dtype=torch.bool)  # [B, S + 1]
        row, column = ((batch.targets > 0) & (window.slot > 0)).nonzero(as_tuple=True)
        asked[row, window.slot[row, column]] = True
        window = _without_request(window)  # S + 1 slots: those before the last are read
        vectors = self.session_vectors(window)  # [B, S + 1, D]
        out = self.run(window, vectors[:, :-1], window.lengths - 1)
        asked = asked[:, 1:]  # by the slot that predicts it: [B, S]
        next_vectors, next_tracks = vectors[:, 1:], window.tracks[:, 1:] * asked[..., None]

        losses = []
        if c.lambda_task > 0:
            row, slot, place = next_tracks.nonzero(as_tuple=True)  # [T] each
            targets = next_tracks[row, slot, place]
            of_next, of_fused, of_long = (
                self.objective(queries[row, slot], targets, self.item_vectors, row) if weight else 0.0
                for queries, weight in (
                    (next_vectors, c.lambda_pos),
                    (out.fused, 1 - c.lambda_pos),
                    (out.long, c.lambda_ls if self.fusion is not None else 0.0),
                )
            )
            track = c.lambda_pos * of_next + (1 - c.lambda_pos) * of_fused + c.lambda_ls * of_long
            cells = len(targets) / next_tracks.numel() if c.legacy_regression else 1.0
            losses.append(c.lambda_task * cells * track)
        if c.lambda_task < 1:
            distance = 1 - F.cosine_similarity(out.fused, next_vectors, dim=-1, eps=TINY)  # [B, S]
            regression = distance[asked].mean()
            if c.legacy_regression:
                regression = regression / asked.numel()
            losses.append((1 - c.lambda_task) * regression)
        return torch.stack(losses).sum()


def _without_request(window: Window) -> Window:
    """Leave the request's slot out."""
    grids = (window.tracks, window.heard, window.long_items, window.long_weights)
    tracks, heard, long_items, long_weights = (grid[:, :-1] for grid in grids)
    return Window(tracks, window.lengths, heard, long_items, long_weights, window.slot)


def _bags(items: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Return weighted sums of ``table`` [V + 1, D] over the bags ``items`` [M, N], 0 = padding: [M, D]."""
    return F.embedding_bag(items, table, per_sample_weights=weights, mode="sum", padding_idx=0)


def unit(x: Tensor) -> Tensor:
    """Return ``x`` [..., D] with length 1; a zero vector stays zero."""
    return F.normalize(x, dim=-1, eps=TINY)


def session_starts(session: Tensor) -> Tensor:
    """Return the position at which each event's session begins, in the rows of ``session`` [B, L]: [B, L]."""
    new = torch.ones_like(session, dtype=torch.bool)
    new[:, 1:] = session[:, 1:] != session[:, :-1]
    position = torch.arange(session.shape[1], device=session.device)[None]
    return torch.where(new, position, 0).cummax(1).values


def history_end(history: History) -> Tensor:
    """Return when the next session is asked for, or without a request the time of the last event: [B]."""
    times: Any = history.times if history.request_times is None else history.request_times
    return times.gather(1, history.lengths[:, None] - 1)[:, 0]


def ppmi_vectors(counts: sp.csr_matrix, dim: int) -> Tensor:
    """Return item vectors from co-occurrence: the first singular vectors of the positive pointwise mutual
    information, times the roots of their values (Levy & Goldberg, NIPS 2014): [V + 1, dim] float32.

    Rows without a count, and directions beyond the matrix's size, are zero.
    """
    pairs = counts.tocoo()
    degree = np.asarray(counts.sum(1)).ravel()
    information = np.log(pairs.data * degree.sum() / (degree[pairs.row] * degree[pairs.col]))
    kept = information > 0
    index = torch.from_numpy(np.stack([pairs.row[kept], pairs.col[kept]]).astype(np.int64))
    values = torch.from_numpy(information[kept].astype(np.float32))
    matrix = torch.sparse_coo_tensor(index, values, counts.shape, check_invariants=False).coalesce()
    rank = min(dim, counts.shape[0])
    left, value, _ = torch.svd_lowrank(matrix, q=min(rank + 8, counts.shape[0]), niter=4)
    out = torch.zeros(counts.shape[0], dim)
    out[:, :rank] = (left * value.sqrt())[:, :rank]
    return out
