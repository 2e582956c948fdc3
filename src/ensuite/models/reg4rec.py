"""REG4Rec: Reasoning-Enhanced Generative Model for Large-Scale Recommendation Systems (Xing et al., 2025,
https://arxiv.org/abs/2508.15308). **A reconstruction**: the paper's text gives no code, few equations and
fewer settings, and its offline tables could not be read. What stands below follows its abstract and its
overview figure; where these are silent, a choice was made and is named. No figure of the paper is claimed.

An item is a *set* of M codes, one of each codebook (tokeniser `mpq`). An encoder reads the history; a decoder
writes the codes of the next item, and in which order is a part of what it decides:

- **CRSS**: at every step the codebook comes next whose best code the model is most certain of: in the search,
  and where a target's codes are taught, unless, with a probability that falls in the first epochs, their
  order is random.
- **PARS**: a second stage of training. Groups of paths are drawn inside the catalogue and rewarded for codes
  and categories that are the target's, for reaching it, and for steps of one category; the better ones of a
  group become likelier (GRPO), with a penalty for leaving the first stage's model. The run of the first stage
  alone is in RUN/base: the row "without PARS" of an ablation.
- **MSRA**: rewards also count against the items that follow the target, with falling weights; the samples
  hold none that is later than the training events (`samples.ahead`; 1 = without).
- **CORP**: before a path's last step, those whose steps disagree too much on the category are pruned.
- *Offline training*: an epoch's paths, their rewards and their probabilities are computed before it, in
  batches, by a policy that stays as it is; updates are weighed by clipped importance ratios.

Choices, where the sources are silent:
- Confidence is a softmax inside each codebook, so that small ones are not preferred.
- A target's codes are taught in the order in which the search would take the codebooks. Ordered by confidence
  in the true codes instead (``confidence: true``), a codebook is taught first only where it is guessed right,
  and the model grows surer than it may be.
- <EOS> is all that may follow M codes: its probability is 1, and it is not computed.
- A path's category at a step is predicted from the decoder's state after that step, by a head that the first
  stage trains.
- Pruned paths come after all others instead of vanishing, so that no list is short; the pair with the step
  to come counts as agreeing.
- A group's paths are different items: they are drawn without replacement. Which codebook is next is not
  drawn, so only the codes' probabilities count. This stage has no dropout.
- "Token-wise norm" is an RMS norm of each token. Items that share all codes share a score, unless the table
  has a digit that tells them apart; it then comes last in every order.
- ``input: compact`` (one vector for an item, made of its codes' by an MLP) stands beside the figure's
  ``tokens`` (<SEP> and M codes for each), which is M + 1 times as long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.codes.unordered import CodeIndex, Start, unordered_search
from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models._reg4rec_pars import PARSConfig, advantages, clipped_loss, path_rewards, report
from ensuite.models.generator import Generator, T5Config
from ensuite.models.materials import Materials
from ensuite.nn.t5 import Cache, Stack
from ensuite.objectives import Objective

if TYPE_CHECKING:
    from ensuite.training.config import RunConfig

PRUNED = 1000.0
"""What is taken from a pruned path's log-probability: more than any path that is kept can lack."""

SCORES_HELD = 1 << 26
"""Probabilities of codes that exact scoring holds at a time."""


@config
class REG4RecConfig(T5Config):
    """Network, order of codes, and the two stages."""

    digit: bool = False
    """Whether the last codebook tells duplicates apart; written here by the training."""
    n_categories: int = 0
    """Categories of items; written here by the training."""
    input: Literal["compact", "tokens"] = "compact"
    """What the encoder reads of an item: one vector, or <SEP> and a token for each code (the figure's)."""
    blocks: int = 2
    """Layers of the encoder and of the decoder each (N / 2)."""
    heads: int = 4
    head_dim: int = 32
    inner: int = 512
    init_std: float = 0.3
    """Standard deviation of the initial token vectors."""
    order: Literal["crss", "fixed"] = "crss"
    """Codes by confidence, or codebook after codebook in training and search."""
    confidence: Literal["best", "true"] = "best"
    """CRSS in training: the codebook whose best code the model is most certain of comes next, as in the
    search, or that of whose true code it is."""
    random_first: float = 1.0
    """CRSS: share of the targets that are taught in a random order in the first epoch."""
    random_last: float = 0.2
    """The same after `curriculum` epochs; in between it falls evenly."""
    curriculum: int = 10
    """Epochs in which it falls."""
    category_weight: float = 0.1
    """Weight of the cross-entropy of the categories beside that of the codes."""
    corp: float | None = None
    """Share of adjacent steps that must agree on the category for a path not to be pruned; null: (M - 2) /
    (M - 1), all but one; 0: no pruning."""
    pars: bool = True
    """Train the second stage; false: the first stage is the whole training."""
    preference: PARSConfig = PARSConfig()
    """The second stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_std <= 0 or self.curriculum < 1 or self.category_weight < 0:
            raise ValueError("init_std is positive, curriculum at least 1, category_weight at least 0")
        for name in ("random_first", "random_last", "corp"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: a share between 0 and 1")
        if self.cold_match:
            raise ValueError("cold_match needs codes in an order, which reg4rec has not; leave it out")


class StepPositions(nn.Embedding):
    """A vector for each step; by its name it is spared from weight decay."""


class REG4Rec(Generator):
    """An encoder of histories and a decoder that writes codes in the order of its confidence."""

    Config = REG4RecConfig
    samples = ("prefixes",)
    defaults = {  # noqa: RUF012
        "samples": {"ahead": 3},
        "codes": {"tokeniser": "mpq"},
    }
    reads = ("codes", "categories")
    training_only = (
        "categories",
        "random_share",
        "reference",
        "drawn_items",
        "drawn_books",
        "behaviour",
        "reference_log_probs",
        "advantage",
    )
    summary = "Writes an item's parallel codes by confidence, tuned on rewards of paths (a reconstruction)"
    paper = "Xing et al., 2025, arXiv:2508.15308 (reconstruction)"
    family = "generative"
    state = "reconstruction, measured"

    offsets: Tensor  # [M] int64, the token of code 0 of each codebook
    categories: Tensor  # [V + 1] int64, row 0 is -1
    random_share: Tensor  # scalar: of this epoch's targets
    reference: Tensor  # [P] the first stage's parameters
    drawn_items: Tensor  # [S, G] int32: where this epoch's paths ended, for S samples
    drawn_books: Tensor  # [S, G, M] uint8: their codebooks, step by step
    behaviour: Tensor  # [S, G, M] log-probabilities of their codes, by codebook, under what drew them
    reference_log_probs: Tensor  # [S, G, M], under the first stage's model
    advantage: Tensor  # [S, G]

    def __init__(self, config: REG4RecConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, sizes = config, config.level_sizes
        self.books, self.free = len(sizes), len(sizes) - c.digit
        # Token 0 is padding; after the codes of all codebooks come those that begin a path and an item.
        first = [1 + sum(sizes[:book]) for book in range(len(sizes))]
        self.register_buffer("offsets", torch.tensor(first), persistent=False)
        self.begin_token, self.item_token = 1 + sum(sizes), 2 + sum(sizes)
        self.tokens = nn.Embedding(3 + sum(sizes), c.dim)
        nn.init.normal_(self.tokens.weight, std=c.init_std)
        self.steps = StepPositions(len(sizes) + 1, c.dim)
        nn.init.normal_(self.steps.weight, std=c.init_std)
        self.join: nn.Module | None = None
        if c.input == "compact":
            wide = len(sizes) * c.dim
            self.join = nn.Sequential(nn.Linear(wide, 2 * c.dim), nn.ReLU(), nn.Linear(2 * c.dim, c.dim))
        self.encoder = Stack(c.shape, c.blocks, causal=False)
        self.decoder = Stack(c.shape, c.blocks, causal=True, cross=True)
        self.heads = nn.Linear(c.dim, sum(sizes), bias=False)
        self.category_head = nn.Linear(c.dim, max(1, c.n_categories))
        self.register_buffer("categories", torch.full((n_items + 1,), -1))
        self.register_buffer("random_share", torch.tensor(c.random_first))
        for name, dtype in (("reference", torch.float32), ("drawn_items", torch.int32)):
            self.register_buffer(name, torch.empty(0, dtype=dtype))
        self.register_buffer("drawn_books", torch.empty(0, dtype=torch.uint8))
        for name in ("behaviour", "reference_log_probs", "advantage"):
            self.register_buffer(name, torch.empty(0))

    # -- materials and stages --

    @classmethod
    def sized_for(cls, config: REG4RecConfig, materials: Materials) -> REG4RecConfig:
        assert materials.codes is not None
        assert materials.categories is not None
        return dataclasses.replace(
            super().sized_for(config, materials),
            digit=materials.codes.policy == "digit",
            n_categories=int(materials.categories.max()) + 1,
        )

    def take(self, materials: Materials) -> None:
        super().take(materials)
        assert materials.categories is not None
        self.categories = materials.categories.to(self.categories)
        coded, group = int((self.codes[:, 0] >= 0).sum()), self.config.preference.group
        if self.config.pars and coded < group:
            raise EnsuiteError(
                f"preference.group = {group} paths cannot end in as many of only {coded} items; give a "
                "smaller group, or train without the second stage (pars = false)"
            )

    @classmethod
    def first_stage(cls, config: RunConfig) -> RunConfig | None:
        if not config.model.pars:
            return None
        model = dataclasses.replace(config.model, pars=False)
        return dataclasses.replace(config, model=model)

    @classmethod
    def last_stage(cls, config: RunConfig) -> RunConfig:
        if not config.model.pars:
            return config
        c, samples, training = config.model.preference, config.samples, config.training
        if not samples.ahead:
            raise EnsuiteError(
                "samples.ahead = 0: the second stage rewards paths against the target; 1 is the target alone "
                "(no MSRA), 3 the default"
            )
        return dataclasses.replace(
            config,
            samples=dataclasses.replace(samples, stride=c.stride or samples.stride),
            training=dataclasses.replace(
                training, epochs=c.epochs, lr=c.lr, schedule="constant", warmup_steps=0, validate_every=1
            ),
        )

    def train(self, mode: bool = True) -> REG4Rec:
        """Set the mode as any module does, but for the second stage, which has no dropout: the ratio of a
        policy to itself is 1."""
        return super().train(mode and not self.config.pars)

    # -- the network --

    def encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Read histories ``items`` [B, n]: what the decoder looks at, [B, S, D], and where it is real."""
        codes = self.codes[items].long()  # [B, n, M]
        tokens = torch.where(codes < 0, 0, codes + self.offsets)
        if self.join is None:
            first = torch.where(tokens[..., :1] > 0, self.item_token, 0)
            tokens = torch.cat([first, tokens], -1).flatten(1)  # [B, n * (M + 1)]
            mask, x = tokens > 0, self.tokens(tokens)
        else:
            mask, x = tokens[..., 0] > 0, self.join(self.tokens(tokens).flatten(-2))
        return self.encoder(x, mask), mask

    def log_probs(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities of the codes of each codebook, for itself: [..., D] to [..., M, K];
        -inf where a codebook has fewer than K."""
        widest = max(self.config.level_sizes)
        parts = self.heads(hidden).float().split(self.config.level_sizes, -1)
        padded = [F.pad(p.log_softmax(-1), (0, widest - p.shape[-1]), value=-torch.inf) for p in parts]
        return torch.stack(padded, -2)

    def read_paths(self, memory: Tensor, mask: Tensor, books: Tensor, codes: Tensor) -> Tensor:
        """Return the decoder's states before the first step and after each, [B, G, M + 1, D].

        Parameters
        ----------
        books
            The codebooks of G paths of each history, in the order of their steps, [B, G, M].
        codes
            The codes, by codebook, [B, G, M].
        """
        group = books.shape[1]
        written = self.offsets[books] + codes.gather(2, books)  # [B, G, M]
        tokens = F.pad(written, (1, 0), value=self.begin_token).flatten(0, 1)
        x = self.tokens(tokens) + self.steps.weight
        memory, mask = memory.repeat_interleave(group, 0), mask.repeat_interleave(group, 0)
        return self.decoder(x, None, memory, mask).unflatten(0, (-1, group))

    def cross_entropy(self, hidden: Tensor, books: Tensor, codes: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return -log p of each code of paths as `read_paths` reads them, by codebook: [B, G, M]."""
        step = books.argsort(2)  # [B, G, M], the step of each codebook
        before = hidden.take_along_dim(step[..., None], 2)  # [B, G, M, D]
        weights = self.heads.weight.split(self.config.level_sizes)
        terms = [
            F.cross_entropy(
                (before[:, :, book] @ weight.T).float().flatten(0, 1),
                codes[:, :, book].flatten(),
                label_smoothing=smoothing,
                reduction="none",
            )
            for book, weight in enumerate(weights)
        ]
        return torch.stack(terms, -1).unflatten(0, codes.shape[:2])

    # -- the first stage --

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of the stage that is trained, the mean over steps: a scalar."""
        return self._preference(batch) if self.config.pars else self._next_item(batch)

    def _next_item(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the targets' codes along their orders, and of their categories."""
        target = _targets(batch)  # [B]
        memory, mask = self.encode(batch.history.items)
        codes = self.codes[target].long()  # [B, M]
        books = self.orders(memory.detach(), mask, codes)[:, None]
        codes = codes[:, None]
        hidden = self.read_paths(memory, mask, books, codes)  # [B, 1, M + 1, D]
        loss = self.cross_entropy(hidden, books, codes, self.label_smoothing).mean()
        if not self.config.category_weight:
            return loss
        said = self.category_head(hidden[:, 0, 1:]).float()  # [B, M, categories]
        true = self.categories[target, None].expand(-1, self.books)
        return loss + self.config.category_weight * F.cross_entropy(said.flatten(0, 1), true.flatten())

    @torch.no_grad()
    def orders(self, memory: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
        """Return the order in which the codes [B, M] of each target are taught: codebooks, [B, M]."""
        n, device = len(codes), codes.device
        if self.config.order == "fixed":
            return torch.arange(self.books, device=device).expand(n, -1)
        keys = torch.rand(n, self.books, device=device)
        keys[:, self.free :] += 1  # the digit comes last
        books = keys.argsort(1)
        by_confidence = torch.rand(n, device=device) >= self.random_share
        if bool(by_confidence.any()):
            some = (t[by_confidence] for t in (memory, mask, codes))
            books[by_confidence] = self.confident_order(*some)
        return books

    @torch.no_grad()
    def confident_order(self, memory: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
        """Return the codebooks [B, M] in the order of the model's confidence, each after the true ``codes``
        [B, M] of those before it."""
        was_training = self.decoder.training
        self.decoder.eval()
        hidden, cache = self._begin(memory, mask)
        used = torch.zeros_like(codes, dtype=torch.bool)
        books = torch.empty_like(codes)
        for step in range(self.books):
            certain = self.log_probs(hidden)[:, 0]  # [B, M, K]
            if self.config.confidence == "true":
                certain = certain.gather(2, codes[..., None])
            certain = certain.amax(2).masked_fill(used, -torch.inf)  # [B, M]
            book = certain[:, : self.free if step < self.free else self.books].argmax(1, keepdim=True)
            books[:, step : step + 1] = book
            used.scatter_(1, book, True)
            hidden, cache = self._read(book, codes.gather(1, book), torch.zeros_like(book), step, cache)
        self.decoder.train(was_training)
        return books

    # -- the second stage --

    def start_epoch(self, epoch: int, batches: Iterable[Batch]) -> None:
        """Move the curriculum on, or draw the epoch's paths."""
        c = self.config
        if not c.pars:
            done = min(1.0, epoch / c.curriculum)
            self.random_share.fill_(c.random_first + done * (c.random_last - c.random_first))
            return
        if epoch == 0:
            self.reference = torch.cat([p.detach().flatten() for p in self.parameters()])
        if epoch == 0 or (c.preference.refresh_every and epoch % c.preference.refresh_every == 0):
            self._draw(batches, at_reference=epoch == 0)

    @torch.no_grad()
    def _draw(self, batches: Iterable[Batch], *, at_reference: bool) -> None:
        """Draw a group of paths for every sample; keep where they lead, and what they are worth."""
        index, numbers, parts, predicted = self.catalogue(), [], [], []
        device = self.codes.device
        noise = torch.Generator(device).manual_seed(int(torch.randint(1 << 62, ())))
        for batch in batches:
            assert batch.number is not None
            items, books = self.draw_paths(batch.history, index, noise)
            behaviour, categories = self._judge(batch, items, books)
            assert batch.ahead is not None
            ahead = batch.ahead  # [B, N]
            rewards = path_rewards(
                self.codes[items], categories, self.codes[ahead], self.categories[ahead], ahead > 0,
                self.config.preference,
            )  # fmt: skip
            numbers.append(batch.number)
            parts.append((items.int(), books.to(torch.uint8), behaviour, rewards))
            predicted.append(torch.bincount(categories.flatten(), minlength=self.category_head.out_features))
        order = torch.cat(numbers).argsort()
        items, books, self.behaviour, rewards = (torch.cat(part)[order] for part in zip(*parts))
        self.drawn_items, self.drawn_books, self.advantage = items, books, advantages(rewards)
        self.reference_log_probs = self.behaviour.clone()
        if not at_reference:
            now = [p.detach().clone() for p in self.parameters()]
            self._set(self.reference.split([p.numel() for p in now]))
            judged = [self._judge(batch, *self._drawn(batch))[0] for batch in batches]
            self._set(now)
            self.reference_log_probs = torch.cat(judged)[order]
        report(torch.stack(predicted).sum(0), torch.bincount(self.categories[1:]), rewards)

    def draw_paths(
        self, history: History, index: CodeIndex, noise: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw a group of paths in the catalogue for each history: the items in which they end, [B, G], and
        their codebooks in order, [B, G, M]."""
        c = self.config.preference
        how = {"temperature": c.temperature, "generator": noise}
        items, _, books = self.search(history, index, width=c.group, k=c.group, **how)
        return items, books

    def _judge(self, batch: Batch, items: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of paths by codebook and the categories after each step: [B, G, M]
        each."""
        codes = self.codes[items].long()
        hidden = self.read_paths(*self.encode(batch.history.items), books, codes)
        return -self.cross_entropy(hidden, books, codes), self.category_head(hidden[:, :, 1:]).argmax(-1)

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.number is not None
        return self.drawn_items[batch.number].long(), self.drawn_books[batch.number].long()

    def _set(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters(), values):
            parameter.copy_(value.view_as(parameter))

    def _preference(self, batch: Batch) -> Tensor:
        if not len(self.drawn_items):
            raise RuntimeError("no paths yet: start_epoch comes before the first loss")
        assert batch.number is not None
        items, books = self._drawn(batch)
        at, c = batch.number, self.config.preference
        log_probs, _ = self._judge(batch, items, books)
        return clipped_loss(
            log_probs, self.behaviour[at], self.reference_log_probs[at], self.advantage[at], c
        )

    # -- search --

    @property
    def pruned_below(self) -> float:
        """The share of adjacent steps that must agree on the category (CORP)."""
        given, pairs = self.config.corp, max(1, self.books - 1)
        return (pairs - 1) / pairs if given is None else given

    def catalogue(self) -> CodeIndex:
        return CodeIndex(self.codes, self.config.level_sizes)

    def _begin(self, memory: Tensor, mask: Tensor) -> tuple[Tensor, Cache]:
        token = torch.full_like(mask[:, :1], self.begin_token, dtype=torch.int64)
        x = self.tokens(token) + self.steps.weight[0]
        return self.decoder.begin(x, torch.ones_like(token[:, 0]), memory, mask)

    def _read(
        self, books: Tensor, codes: Tensor, parents: Tensor, step: int, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Read the codes [B, W] that beams have written at ``step``: their states, [B, W, D], and the cache
        after them."""
        x = self.tokens(self.offsets[books] + codes) + self.steps.weight[step + 1]
        return self.decoder.step(x, parents, cache)

    def begin(self, history: History) -> Start:
        """Read the histories: log-probabilities of the codes of all codebooks, [B, 1, M, K], and a state."""
        hidden, cache = self._begin(*self.encode(history.items))
        nothing = torch.zeros_like(history.items[:, :1])
        return self.log_probs(hidden), (0, cache, nothing, nothing)

    def step(self, books: Tensor, codes: Tensor, parents: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one more code for each beam (`ensuite.codes.unordered.Step`); before the last step, prune."""
        number, cache, category, agreed = state  # the latter two: [B, W]
        hidden, cache = self._read(books, codes, parents, number, cache)
        log_probs = self.log_probs(hidden)
        now = self.category_head(hidden).argmax(-1)
        agreed = agreed.gather(1, parents)
        if number:
            agreed = agreed + (now == category.gather(1, parents))
        if number + 2 == self.books:  # one step is left, and its pair counts as agreeing
            low = agreed + 1 < self.pruned_below * (self.books - 1) - 1e-6
            log_probs = log_probs - PRUNED * low[..., None, None]
        return log_probs, (number + 1, cache, now, agreed)

    def search(
        self, history: History, index: CodeIndex, *, width: int, k: int, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Search the catalogue along this model's order of codebooks, see `unordered_search`."""
        return unordered_search(
            index,
            self.begin(history),
            self.step,
            width=width,
            k=k,
            order=list(range(self.books)) if self.config.order == "fixed" else None,
            last=int(self.config.digit),
            **how,
        )

    def generate(
        self,
        history: History,
        k: int,
        beams: int | None = None,
        *,
        catalogue: CodeIndex | None = None,
        allowed: Tensor | None = None,
        excluded: Tensor | None = None,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do as `Generator.generate`; with a ``temperature``, lists are drawn (see `unordered_search`)."""
        index = self.catalogue() if catalogue is None else catalogue
        width = max(k, min(self.config.beams if beams is None else beams, index.items.shape[1]))
        items, scores, _ = self.search(
            history,
            index,
            width=width,
            k=k if self.config.cold_share == 1 else width,
            allowed=allowed,
            excluded=excluded,
            temperature=temperature,
            generator=generator,
        )
        return (items, scores) if self.config.cold_share == 1 else self.cap_cold(items, scores, k)

    def exact_scores(self, history: History, catalogue: CodeIndex) -> Tensor:
        """Search with a beam for every item, some users at a time."""
        every = catalogue.items.shape[1]
        users = max(1, SCORES_HELD // (every * self.books * max(self.config.level_sizes)))
        scores = torch.full((len(history.items), self.n_items + 1), -torch.inf, device=self.codes.device)
        for first in range(0, len(scores), users):
            some = History(history.items[first : first + users])
            items, found = self.generate(some, every, every, catalogue=catalogue)
            scores[first : first + users].scatter_(1, items, found)
        scores[:, 0] = -torch.inf
        return scores


def _targets(batch: Batch) -> Tensor:
    return batch.targets.gather(1, batch.history.lengths[:, None] - 1)[:, 0]
