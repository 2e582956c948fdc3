"""Ada-Retrieval: An Adaptive Multi-Round Retrieval Paradigm for Sequential Recommendations (Li et al., AAAI
2024, https://arxiv.org/abs/2401.06633).

A list of 50 or 100 items is retrieved in T rounds of m items each. What the rounds before have returned is
the context of the next one: an *item representation adapter* (IRA) adapts the vectors of the history to the
items returned, a *user representation adapter* (URA) the user's vector to those of the rounds before. Both
stand around any encoder that can read vectors in place of its items (`FromVectors`). Official code:
https://github.com/ll0ruc/Ada-Retrieval.

    C = LFT(round 1's items) .. LFT(round t's items)     LFT(x) = LN(x + dropout(Linear(filter(x))))
    E' = LN(E + dropout(softmax(E C^T / sqrt(D)) C))                               IRA (CAT)
    u = encoder(E'),  c = GRU(u_0 .. u_{t-1}),  u_t = LN(u + dropout(MLP([u; c])))  URA
    loss = sum over t of lambda^t L_t,  L_t the objective with u_t as the user's vector

Round 0 is the encoder alone. Which items a round returns is discrete: no gradient passes through it. The list
is the rounds' items in the order of the rounds; all other items come after it, by their scores in round 0.
Training has two stages: the encoder alone (a run of its own in RUN/base, or ``--from`` another run), then all
weights with the adapters.

What differs from the released code, unless ``as_released`` is set: in training, contexts hold neither items
of the history (evaluated lists never do) nor the target, which would tell later rounds the answer.

What differs always: an excluded item scores -inf, not -9999; a history holds what happened until then, where
the release masks items of validation and test and never draws them as negatives; the two-stage training that
its README demands is on, in its script it is off; a round's items are filtered once, not again in each later
round; scores have a bias per item only if the encoder has one.

Our choices, where the paper says nothing: ablations of the adapters put the mean in place of the attention or
the GRU. Where scores are cosines, adapted users have length 1 as the encoder's have. When a catalogue is too
small for the list, the places that cannot be filled stay empty and are not attended to. What an encoder does
in its own loss (HSTU's stochastic length, say) it does in the first stage alone.

Published (released logs, Beauty, SASRec as the encoder, full ranking): HIT@50 .1784, HIT@100 .2339, NDCG@50
.0704, NDCG@100 .0794; the encoder alone: .1688, .2262, .0643, .0736.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.data.samples import Kind
from ensuite.errors import EnsuiteError
from ensuite.exporting import is_exporting
from ensuite.models.base import BlockScorer, FromVectors
from ensuite.models.wrapper import Wrapper, WrapperConfig
from ensuite.nn.dropout import Dropout
from ensuite.nn.embeddings import similar
from ensuite.nn.learnable_filter import LearnableFilter
from ensuite.objectives import Objective

if TYPE_CHECKING:
    from ensuite.training.config import RunConfig

EPS = 1e-12  # of the adapters' layer norms
SCORES_HELD = 1 << 26  # scores that a retrieval holds at a time: 256 MiB of float32


@config
class AdaRetrievalConfig(WrapperConfig):
    """Rounds, adapters and stages; defaults are the released ones."""

    rounds: int = 5
    """Retrieval rounds, T; 1 is the encoder alone."""
    total: int = 100
    """Places in the list over all rounds; `rounds` must divide it."""
    item_adapter: Literal["attention", "mean", "none"] = "attention"
    """How the context enters the history (IRA): attention (CAT), its mean at every position, not at all."""
    item_filter: bool = True
    """Filter the items of each round before they become context (LFT of the IRA)."""
    user_adapter: Literal["gru+mlp", "mlp", "gru", "none"] = "gru+mlp"
    """How users of earlier rounds move the user (URA); mlp reads their mean, gru adds its state directly."""
    round_decay: float = 0.3
    """Lambda: weight of a round's loss relative to the round before; 0 trains the first round only."""
    adapter_dropout: float = 0.1777
    """Share of elements dropped in the adapters."""
    init_std: float = 0.02
    """Standard deviation of the adapters' initial weights."""
    as_released: bool = False
    """Training contexts may hold items of the history and the target, as in the authors' code."""
    two_stage: bool = True
    """Train the encoder alone first; false trains everything at once from fresh weights."""
    base_epochs: int = 0
    """Most epochs of the first stage; 0 = training.epochs."""
    base_lr: float = 0.0
    """Learning rate of the first stage; 0 = training.lr."""
    base_samples: Kind | None = None
    """Samples of the first stage; null = those of the second, or the encoder's own if it cannot use them."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.total < 1 or self.total % self.rounds:
            raise ValueError(
                f"total = {self.total}: rounds = {self.rounds} must divide it, and both be positive"
            )
        if not 0 <= self.round_decay <= 1:
            raise ValueError(f"round_decay = {self.round_decay}: between 0 and 1 is needed")
        if not 0 <= self.adapter_dropout < 1:
            raise ValueError(f"adapter_dropout = {self.adapter_dropout}: at least 0 and below 1 is needed")
        if self.init_std <= 0 or self.base_lr < 0 or self.base_epochs < 0:
            raise ValueError("init_std is positive, base_lr and base_epochs at least 0")


class AdaRetrieval(Wrapper):
    """Rounds of retrieval around the encoder ``base``; `encode`, `forward` and `item_vectors` are those of
    round 0."""

    Config = AdaRetrievalConfig
    needs = FromVectors  # type: ignore[type-abstract]
    samples = ("prefixes", "last-position")  # type: ignore[assignment]
    summary = "Retrieval in rounds, each conditioned on what the rounds before it returned"
    paper = "Li et al., AAAI 2024, arXiv:2401.06633"
    family = "wrapper"
    state = "measured"

    def __init__(self, config: AdaRetrievalConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, dim = config, self.base.config.dim
        self.causal = self.base.causal  # type: ignore[misc]
        self.size = c.total // c.rounds  # m, items of a round
        self.item_adapter = self.user_adapter = None
        if c.rounds > 1 and c.item_adapter != "none":
            self.item_adapter = ItemAdapter(c, dim, self.size)
        if c.rounds > 1 and c.user_adapter != "none":
            self.user_adapter = UserAdapter(c, dim)

    @classmethod
    def first_stage(cls, config: RunConfig) -> RunConfig | None:
        c = config.model
        if not c.two_stage:
            return None
        learns_from = cls.base_class(c.base).samples
        kind = config.samples.kind if config.samples.kind in learns_from else learns_from[0]
        if c.base_samples and c.base_samples not in learns_from:
            raise EnsuiteError(
                f"base_samples = '{c.base_samples}': {c.base} does not learn from them, but from "
                f"{', '.join(learns_from)}"
            )
        training = config.training
        return dataclasses.replace(
            config,
            name=c.base,
            model=c.encoder,
            samples=dataclasses.replace(config.samples, kind=c.base_samples or kind),  # type: ignore[arg-type]
            training=dataclasses.replace(
                training, epochs=c.base_epochs or training.epochs, lr=c.base_lr or training.lr
            ),
        )

    def forward(self, history: History) -> Tensor:
        """Encode every position as round 0 does: [B, L, D]."""
        return self.base(history)

    def encode(self, history: History) -> Tensor:
        """Return the user's vector of round 0: [B, D]."""
        return self.base.encode(history)

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of the rounds' losses, each weighted lambda ** t: a scalar.

        Each row of ``batch`` has one target, at its last position.
        """
        if self.objective is None:
            raise RuntimeError("this model was built to score only: no objective was given")
        history, row = batch.history, torch.arange(len(batch.targets), device=batch.targets.device)
        targets = batch.targets[row, history.lengths - 1]  # [B]
        table = self.item_vectors()  # [V + 1, W]
        kept_out = torch.cat([history.items, targets[:, None]], 1)  # [B, L + 1]
        users, _ = self.run_rounds(
            history, table.detach(), kept_out[:, :0] if self.config.as_released else kept_out, last=False
        )

        def vectors(items: Tensor | None) -> Tensor:
            return table if items is None else table[items]

        losses = [self.objective(user, targets, vectors, row) for user in users]
        return torch.stack([self.config.round_decay**t * loss for t, loss in enumerate(losses)]).sum()

    def run_rounds(
        self, history: History, catalogue: Tensor, kept_out: Tensor, *, last: bool = True
    ) -> tuple[list[Tensor], Tensor]:
        """Go through all rounds.

        Parameters
        ----------
        catalogue
            Vectors of all rows, [V + 1, W], without gradient.
        kept_out
            Item rows that no round may return, [B, X]; 0 never is.
        last
            Whether the items of the last round are needed; no later round reads them.

        Returns
        -------
        tuple
            The user's vector of each round, T times [B, W], and the list, round by round and best first,
            [B, T * m], 0 where no item was left; without ``last``, [B, (T - 1) * m].
        """
        items, dim = self.base.input_vectors(history.items), self.base.config.dim  # [B, L, D]
        user = self.base.encode_vectors(items, history)  # [B, W]
        users, taken = [user], F.pad(kept_out, (1, 0))  # taken: [B, 1 + X + t * m]
        context = items[:, :0]  # [B, t * m, D]
        state = None
        for t in range(1, self.config.rounds + last):
            taken = torch.cat([taken, self.retrieve(users[-1], catalogue, taken)], 1)
            if t == self.config.rounds:
                break
            if self.item_adapter is not None:
                found = taken[:, -self.size :]  # [B, m]
                context = torch.cat([context, self.item_adapter.read(self.base.input_vectors(found))], 1)
                real = taken[:, 1 + kept_out.shape[1] :] != 0  # [B, t * m]
                user = self.base.encode_vectors(self.item_adapter(items, context, real), history)
            if self.user_adapter is None:
                users.append(user)
                continue
            state = self.user_adapter.remember(users[-1][:, :dim], state)
            adapted = self.user_adapter(user[:, :dim], state)
            adapted = similar(adapted, getattr(self.base.config, "similarity", "dot"))
            # What stands beyond D is not the user's: BERT4Rec's 1, which meets the bias of an item.
            users.append(torch.cat([adapted, user[:, dim:]], 1))
        return users, taken[:, 1 + kept_out.shape[1] :]

    @torch.no_grad()
    def retrieve(self, user: Tensor, catalogue: Tensor, taken: Tensor) -> Tensor:
        """Return the m items of best score that are not ``taken`` [B, X], best first: [B, m], 0 where there
        are no more."""
        found, width = [], len(catalogue)
        if not is_exporting():  # there the caller sees to it that batches are small enough
            width = max(1, SCORES_HELD // len(user))
        with torch.autocast(user.device.type, enabled=False):  # which items come first is not left to bf16
            for first in range(0, len(catalogue), width):
                block = catalogue[first : first + width].float()
                scores = user.detach().float() @ block.T  # [B, width]
                if width >= len(catalogue):
                    scores.scatter_(1, taken, -torch.inf)
                else:
                    row, at = ((taken >= first) & (taken < first + len(block))).nonzero(as_tuple=True)
                    scores[row, taken[row, at] - first] = -torch.inf
                best, at = scores.topk(min(self.size, len(block)), dim=1)
                found.append((best, at + first))
        best, items = torch.cat([b for b, _ in found], 1), torch.cat([i for _, i in found], 1)
        if len(found) > 1:
            best, at = best.topk(min(self.size, best.shape[1]), dim=1)
            items = items.gather(1, at)
        return F.pad(items.masked_fill(best.isneginf(), 0), (0, self.size - items.shape[1]))

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        """Return the function that scores blocks of items so that the list comes first, place by place.

        An item of the list scores by its place alone, above all others; the others, those of the history too,
        score as in round 0. The rounds leave out the history that the model reads.
        """
        users, listed = self.run_rounds(history, catalogue, history.items)  # listed: [B, N]
        user = users[0]
        # No score of round 0 is above this bound (Cauchy-Schwarz). Steps of at least its own size keep places
        # apart in float32.
        bound = user.norm(dim=1, keepdim=True) * catalogue.norm(dim=1).max()  # [B, 1]
        places = torch.arange(listed.shape[1], 0, -1, device=user.device)  # [N], the first place scores most
        by_place = bound + places * bound.clamp(min=1.0)  # [B, N]

        def scores(first: int, last: int) -> Tensor:
            block = user @ catalogue[first:last].T  # [B, last - first]
            if is_exporting():  # all rows; a place that is empty falls on padding's
                return block.scatter(1, listed - first, by_place)
            row, at = ((listed >= max(first, 1)) & (listed < last)).nonzero(as_tuple=True)
            block[row, listed[row, at] - first] = by_place[row, at]
            return block

        return scores


class ItemAdapter(nn.Module):
    """IRA: a filter over the items of a round, and their influence on the vectors of the history."""

    def __init__(self, config: AdaRetrievalConfig, dim: int, size: int):
        super().__init__()
        self.kind = config.item_adapter
        self.filter: nn.Module | None = None
        if config.item_filter:
            self.filter = nn.Sequential(
                LearnableFilter(size, dim, config.init_std),
                _linear(dim, dim, config.init_std),
                Dropout(config.adapter_dropout),
            )
            self.filter_norm = nn.LayerNorm(dim, EPS)
        self.dropout = Dropout(config.adapter_dropout)
        self.norm = nn.LayerNorm(dim, EPS)

    def read(self, found: Tensor) -> Tensor:
        """Turn the vectors of a round's items into context: [B, m, D] to [B, m, D]."""
        return found if self.filter is None else self.filter_norm(found + self.filter(found))

    def forward(self, items: Tensor, context: Tensor, real: Tensor) -> Tensor:
        """Adapt the history's vectors ``items`` [B, L, D] to ``context`` [B, C, D] where ``real`` [B, C]."""
        scores = items @ context.mT * items.shape[-1] ** -0.5  # [B, L, C]
        if self.kind == "mean":
            scores = torch.zeros_like(scores[:, :1])  # [B, 1, C]
        # A finite mask: for somebody who has seen the whole catalogue no context is real.
        scores = scores.masked_fill(~real[:, None], torch.finfo(scores.dtype).min)
        return self.norm(items + self.dropout(scores.softmax(-1) @ context))


class UserAdapter(nn.Module):
    """URA: what the users of the rounds before were, and its influence on the user's vector."""

    def __init__(self, config: AdaRetrievalConfig, dim: int):
        super().__init__()
        self.gru: nn.GRUCell | None = None
        if "gru" in config.user_adapter:
            self.gru = nn.GRUCell(dim, dim)
            for name, parameter in self.gru.named_parameters():
                nn.init.zeros_(parameter) if "bias" in name else nn.init.normal_(
                    parameter, std=config.init_std
                )
        self.mlp: nn.Module | None = None
        if "mlp" in config.user_adapter:
            self.mlp = nn.Sequential(
                _linear(2 * dim, 2 * dim, config.init_std), nn.ReLU(), _linear(2 * dim, dim, config.init_std)
            )
        self.dropout = Dropout(config.adapter_dropout)
        self.norm = nn.LayerNorm(dim, EPS)

    def remember(self, user: Tensor, state: Any) -> Any:
        """Add the user's vector of a round, [B, D], to the state (None before the first)."""
        if self.gru is not None:
            return self.gru(user, state)
        return [*(state or []), user]

    def forward(self, user: Tensor, state: Any) -> Tensor:
        """Adapt the user's vector [B, D] to those of the rounds before."""
        c = state if self.gru is not None else torch.stack(state).mean(0)  # [B, D]
        update = c if self.mlp is None else self.mlp(torch.cat([user, c], 1))
        return self.norm(user + self.dropout(update))


def _linear(wide: int, out: int, std: float) -> nn.Linear:
    layer = nn.Linear(wide, out)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer
