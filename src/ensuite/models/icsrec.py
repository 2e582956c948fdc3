"""ICSRec: Intent Contrastive Learning with Cross Subsequences for Sequential Recommendation (Qin et al.,
WSDM 2024, https://arxiv.org/abs/2310.14318).

Every prefix of a sequence is a sample of its own (dynamic segmentation). Two prefixes that precede the same
item are taken to share an intent: their vectors attract each other (coarse intent, CICL), and each is
attracted to the centroid of its k-means cluster (fine intent, FICL); what has the same target or the same
cluster is no negative (FNM). Serving is that of any dot-product model: neither pairs nor clusters take part.
Official code: https://github.com/QinHsiu/ICSRec.

What differs from the released code:
- A pair is drawn anew in each epoch among the samples with the same target and another history
  (``samples.pair: random``), as the text suggests; the release takes the last one, always (``pair: last``).
- Each history of a pair is encoded once; the release encodes the first again, with another dropout, for the
  contrastive terms (``encode_twice``).
- Seen items are left out of the ranking by the evaluation; the release gives them a score of 0, which still
  outranks every negative one (``seen_as_zero``, to be evaluated with ``--exclude none``).
- The softmax is over the items; the release's also has a padding and a mask class, which are never right.
- The random items in scored histories (``noise``, a share of their length) are a function of the history, not
  of a random generator: an evaluation is repeatable.
- Long sequences: see `ensuite.data.samples`.

Chosen, where neither text nor code were at hand: the GRU reads item vectors without positions and layer norm;
its weights are initialised as PyTorch does. The Transformer's positions count from the newest event, as
left-padded slots do. With ``similarity: cosine`` only the scores are cosines: the contrastive terms read the
encoder's output as it is.

Published (Beauty, full ranking): HR@10 .0959, NDCG@10 .0578 (the repository's log); HR@5 .0698, NDCG@5 .0494,
HR@20 .1298, NDCG@20 .0663 (the paper's table).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.data.dataset import Events
from ensuite.data.noise import insert_noise
from ensuite.errors import EnsuiteError
from ensuite.models._growing import with_rows
from ensuite.models.base import BlockScorer, Retriever
from ensuite.nn.attention import SelfAttention, last_positions
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import ItemTable, PositionTable, Similarity, similar
from ensuite.nn.gru import GRULayer
from ensuite.nn.k_means import KMeansConfig, k_means, nearest
from ensuite.objectives import Objective
from ensuite.objectives.contrastive import info_nce

EPS = 1e-12  # of the layer norms, as in BERT


@config
class ICSRecConfig:
    """Encoder and contrastive terms; defaults are the paper's for Beauty and Sports."""

    encoder: Literal["transformer", "gru"] = "transformer"
    """Post-norm causal Transformer, or one GRU layer with a linear layer after it."""
    dim: int = 64
    """Width D of items and outputs."""
    blocks: int = 2
    """Transformer: number of layers."""
    heads: int = 2
    """Transformer: attention heads; must divide `dim`."""
    inner: int = 0
    """Width of the feed-forward layers, 0 = 4 * dim; of the GRU's state, 0 = 2 * dim."""
    max_length: int = 50
    """Most recent events that are read, L."""
    dropout: float = 0.5
    """Share of elements dropped after the embedding and, in a Transformer, after each layer."""
    attention_dropout: float = 0.5
    """Transformer: share of attention weights dropped."""
    similarity: Similarity = "dot"
    """Score by dot product or by cosine (then give the objective a temperature)."""
    init_std: float = 0.02
    """Standard deviation of the initial item and position vectors and linear layers, normal."""
    cl_mode: Literal["none", "c", "f", "cf"] = "cf"
    """Contrastive terms: coarse (CICL), fine (FICL), both or none."""
    rec_weight: float = 1.0
    """Weight of the next-item objective."""
    lambda0: float = 0.3
    """Weight of CICL; 0 = without."""
    beta0: float = 0.1
    """Weight of FICL; 0 = without."""
    fnm: bool = True
    """False-negative mask: the same target (CICL) or cluster (FICL) is no negative."""
    temperature: float = 1.0
    """Dot products of the contrastive terms are divided by it."""
    intent_num: int = 256
    """Number of clusters K."""
    unit_norm: Literal["centroid", "both"] = "centroid"
    """FICL: scale centroids alone to length 1, after the assignment (as released), or hidden states too,
    before they are clustered."""
    refit_every: int = 1
    """Epochs between two runs of k-means."""
    kmeans: KMeansConfig = KMeansConfig()
    """How the clusters are sought."""
    encode_twice: bool = False
    """Encode the first history of a pair once more, with a dropout of its own, for the contrastive terms
    (as released; a third pass in each step)."""
    seen_as_zero: bool = False
    """Give the items of the history a score of 0 (as released; to be evaluated with --exclude none)."""
    noise: float = 0.0
    """Scoring: random items inserted into each history, as a share of its length (the robustness test of the
    released code)."""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.max_length < 1 or self.blocks < 1 or self.inner < 0 or self.init_std <= 0:
            raise ValueError("dim, max_length, blocks and init_std are positive, inner at least 0")
        if self.encoder == "transformer" and (self.heads < 1 or self.dim % self.heads):
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 0 and below 1 is needed")
        for name in ("rec_weight", "lambda0", "beta0"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: a weight is at least 0")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise = {self.noise}: a share between 0 and 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}: it divides, so it must be above 0")
        if self.intent_num < 1 or self.refit_every < 1:
            raise ValueError("intent_num and refit_every are at least 1")


class ICSRec(Retriever):
    """A sequence encoder with a tied item table and two contrastive terms."""

    Config = ICSRecConfig
    samples = ("prefixes", "last-position")  # type: ignore[assignment]
    defaults = {"samples": {"pair": "random"}, "training": {"batch_size": 256}}  # noqa: RUF012
    intents: Tensor  # [K, D], NaN before the first clustering
    summary = "Transformer or GRU with contrasts of subsequences that share an intent"
    paper = "Qin et al., WSDM 2024, arXiv:2310.14318"
    family = "contrastive"
    state = "measured"

    def __init__(self, config: ICSRecConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        self.coarse = "c" in config.cl_mode and config.lambda0 > 0  # "none" holds neither letter
        self.fine = "f" in config.cl_mode and config.beta0 > 0
        self.items = ItemTable(n_items + 1, config.dim, config.init_std)
        self.encoder: Transformer | GRU
        self.encoder = Transformer(config) if config.encoder == "transformer" else GRU(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.init_std)
                nn.init.zeros_(module.bias)
        clusters = config.intent_num if self.fine else 0
        self.register_buffer("intents", torch.full((clusters, config.dim), float("nan")))

    # -- scores --

    def input_vectors(self, items: Tensor) -> Tensor:
        """Return the vectors of ``items`` [...]: [..., D]."""
        return self.items(items)

    def forward(self, history: History) -> Tensor:
        output = self.encoder(self.input_vectors(history.items), history)
        return similar(output, self.config.similarity)  # [B, L, D]

    def encode(self, history: History) -> Tensor:
        return self.encode_vectors(self.input_vectors(history.items), history)

    def encode_vectors(self, vectors: Tensor, history: History) -> Tensor:
        """Return the users' vectors [B, D], reading ``vectors`` [B, L, D] for the items."""
        return similar(self.encoder.last(vectors, history), self.config.similarity)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return similar(self.items.weight if items is None else self.items(items), self.config.similarity)

    def with_items(self, like: Sequence[Sequence[int]]) -> ICSRec:
        """Return this model with more items (protocol `TakesItems`)."""
        return with_rows(self, like)

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        read = insert_noise(history, self.config.noise, self.n_items).last(self.max_length)
        score = super().scorer(read, catalogue)
        return zero_seen(score, history) if self.config.seen_as_zero else score

    # -- training --

    def fit(self, events: Events) -> None:
        """Refuse more clusters than there are subsequences to put into them."""
        if self.fine:
            self._need_points(int((events.lengths - 1).clip(min=0).sum()))

    def start_epoch(self, epoch: int, batches: Iterable[Batch]) -> None:
        """Cluster the last hidden states of all training subsequences, read in evaluation mode."""
        if (self.coarse or self.fine) and next(iter(batches)).pair is None:
            raise EnsuiteError(
                f"icsrec: cl_mode = {self.config.cl_mode} contrasts pairs of samples, and samples.pair is "
                "none; set samples.pair = random (or last), or model.cl_mode = none"
            )
        if not self.fine or epoch % self.config.refit_every:
            return
        was_training = self.training
        self.eval()
        with torch.no_grad():
            hidden = torch.cat([self._clustered(self.hidden(batch.history)) for batch in batches])  # [N, D]
        self.train(was_training)
        self._need_points(len(hidden))
        clusters = k_means(hidden, self.config.intent_num, self.config.kmeans)
        self.intents.copy_(clusters.centroids)

    def loss(self, batch: Batch) -> Tensor:
        """Return rec_weight * L_rec + lambda0 * L_CICL + beta0 * L_FICL, a scalar (section 3.5); each target
        stands at its history's last position."""
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        c, history = self.config, batch.history
        target = batch.targets.gather(1, history.lengths[:, None] - 1)[:, 0]  # [B]
        hidden = self.hidden(history)  # [B, D]
        row = torch.arange(len(hidden), device=hidden.device)
        user = similar(hidden, c.similarity)
        total = c.rec_weight * self.objective(user, target, self.item_vectors, row)
        if not (self.coarse or self.fine):
            return total
        assert batch.pair is not None, "start_epoch refuses samples without pairs"
        one = self.hidden(history) if c.encode_twice else hidden
        two = self.hidden_by_length(batch.pair)
        if self.coarse:
            total = total + c.lambda0 * info_nce(one, two, target if c.fnm else None, c.temperature)
        if self.fine:
            total = total + c.beta0 * (self.fine_loss(one) + self.fine_loss(two))
        return total

    def fine_loss(self, hidden: Tensor) -> Tensor:
        """Contrast hidden states [B, D] with the centroids that they are assigned to: a scalar. No gradient
        reaches assignment and centroids."""
        if bool(self.intents[0, 0].isnan()):
            raise RuntimeError("no clusters yet: start_epoch comes before the first loss")
        hidden = self._clustered(hidden)
        cluster, _ = nearest(hidden.detach(), self.intents)  # [B]
        intent = F.normalize(self.intents[cluster], dim=-1)  # [B, D]
        return info_nce(hidden, intent, cluster if self.config.fnm else None, self.config.temperature)

    def hidden(self, history: History) -> Tensor:
        """Return the encoder's output after the last event, not scaled by the similarity: [B, D]."""
        return self.encoder.last(self.input_vectors(history.items), history)

    def hidden_by_length(self, history: History) -> Tensor:
        """Compute what `hidden` computes where lengths differ widely: by classes of at most 4, 8, 16, ...
        events, so that at most about half of what is read is padding."""
        order = history.lengths.argsort()
        lengths = history.lengths[order]
        widths = torch.tensor(
            [4 << i for i in range(history.items.shape[1].bit_length())]
        )  # past the longest
        ends = torch.searchsorted(lengths, widths.to(lengths.device), right=True).tolist()
        parts, at = [], 0
        for width, end in zip(widths.tolist(), ends):
            if end > at:
                parts.append(self.hidden(History(history.items[order[at:end], :width])))
                at = end
        return torch.cat(parts)[order.argsort()]

    def _clustered(self, hidden: Tensor) -> Tensor:
        return F.normalize(hidden, dim=-1) if self.config.unit_norm == "both" else hidden

    def _need_points(self, n: int) -> None:
        if n < self.config.intent_num:
            raise EnsuiteError(
                f"icsrec: intent_num = {self.config.intent_num} clusters of only {n} training subsequences; "
                f"set model.intent_num to {n} or less (a few hundred of each are usual), or cl_mode to c"
            )


def zero_seen(score: BlockScorer, history: History) -> BlockScorer:
    """Wrap a scorer: the items of the history score 0."""

    def zeroed(first: int, last: int) -> Tensor:
        scores = score(first, last)  # [B, last - first]
        row, position = ((history.items >= max(first, 1)) & (history.items < last)).nonzero(as_tuple=True)
        scores[row, history.items[row, position] - first] = 0.0
        return scores

    return zeroed


class Transformer(nn.Module):
    """Item and position vectors, normalised, through post-norm causal blocks (section 3.2)."""

    def __init__(self, config: ICSRecConfig):
        super().__init__()
        self.positions = PositionTable(config.max_length, config.dim, "end", config.init_std)
        self.norm = nn.LayerNorm(config.dim, EPS)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, vectors: Tensor, history: History) -> Tensor:
        """Read ``vectors`` [B, L, D] as the items of the histories: [B, L, D]."""
        x = self.embed(vectors, history)
        for block in self.blocks:
            x = block(x)
        return x

    def last(self, vectors: Tensor, history: History) -> Tensor:
        """Return the output after the last event, [B, D]; the last block is computed there only."""
        x = self.embed(vectors, history)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.blocks[-1](last_positions(x, history.lengths), x, history.mask)[:, 0]

    def embed(self, vectors: Tensor, history: History) -> Tensor:
        """Add positions, counted from the newest event; normalise: [B, L, D]."""
        return self.dropout(self.norm(vectors + self.positions(history.positions, history.lengths)))


class Block(nn.Module):
    """Self-attention, then a feed-forward layer with GELU, each LN(x + dropout(f(x)))."""

    def __init__(self, config: ICSRecConfig):
        super().__init__()
        dim, inner = config.dim, config.inner or 4 * config.dim
        self.attention = SelfAttention(dim, config.heads, config.attention_dropout, causal=True)
        self.attention_norm = nn.LayerNorm(dim, EPS)
        self.feed_forward = nn.Sequential(nn.Linear(dim, inner), nn.GELU(), nn.Linear(inner, dim))
        self.feed_forward_norm = nn.LayerNorm(dim, EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Update positions ``x`` [B, Q, D], which see ``memory`` [B, L, D] (default: x, causally)."""
        x = self.attention_norm(x + self.dropout(self.attention(x, memory, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class GRU(nn.Module):
    """One GRU layer over item vectors and a linear layer back to their width."""

    def __init__(self, config: ICSRecConfig):
        super().__init__()
        state = config.inner or 2 * config.dim
        self.dropout = Dropout(config.dropout)
        self.gru = GRULayer(config.dim, state)
        self.output = nn.Linear(state, config.dim)

    def forward(self, vectors: Tensor, history: History) -> Tensor:
        """Read ``vectors`` [B, L, D] as the items of the histories: [B, L, D]."""
        return self.output(self.gru(self.dropout(vectors))[0])

    def last(self, vectors: Tensor, history: History) -> Tensor:
        """Return the output after the last event: [B, D]."""
        states = self.gru(self.dropout(vectors))[0]  # [B, L, H]; padding comes after the last event
        return self.output(last_positions(states, history.lengths)[:, 0])
