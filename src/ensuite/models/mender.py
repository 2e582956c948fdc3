"""Mender: Preference Discerning with LLM-Enhanced Generative Retrieval (Paischer et al., TMLR 2025,
https://arxiv.org/abs/2412.08604; code facebookresearch/preference_discerning, CC-BY-NC, read for what it does
and not copied).

A T5 decoder writes the codes of the next item and reads, in place of TIGER's encoder, a memory of what the
user says and of what the user did, both as text: the same model can be steered in words when it is asked.

- ``form: emb``: one vector of a frozen text encoder for each preference and each of the last items,
  [p, item_1, ..., item_n]. Nothing tells the decoder in which order the items came.
- ``form: tok``: the text encoder's state at every token of "preference + texts of the items"; the encoder is
  frozen, or has low-rank adapters. Whole oldest items are dropped when the text is too long, the preference
  never.

What differs from the paper:
- Any Transformer reads the texts; the paper's FLAN-T5-small and instructor-base need a network to be had.
- The search stays in the catalogue (the paper searches freely and drops what is no item), and the softmax of
  a level is over the codes of that level.
- ``form: emb`` hides padding; the released code attends to its zeros (``mask: false``, with n fixed at
  `max_length`).
- Targets that must not come are learned by unlikelihood, or by a cross-entropy that stops at chance; the
  released difference of cross-entropies has no bound.

The encoder's weights are not in a run: its name and hash are (config.yaml), and another one is refused.
Without a preference the place of the first one holds only the bias of the map: a ranking by history.

Published (recommendation with the oracle preference, Beauty): Mender-Tok R@10 .0937, N@10 .0508; no row was
reproduced here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ensuite.codes.beam import Start
from ensuite.config import config
from ensuite.data.batches import Batch, History
from ensuite.errors import EnsuiteError
from ensuite.models.generator import OrderedGenerator, T5Config
from ensuite.models.materials import Materials
from ensuite.nn.t5 import Cache, Stack
from ensuite.objectives import Objective

if TYPE_CHECKING:
    from ensuite.content.encoders import SentenceEncoder

TAG = "User preference:"
"""Stands before the preference in ``form: tok``."""
PREFERENCE_TOKENS, ITEM_TOKENS = 64, 64
"""Most tokens of a preference (longer ones are refused) and of an item's text (cut)."""


@config
class MenderConfig(T5Config):
    """Form, texts and the network; sizes are the paper's for Beauty."""

    form: Literal["emb", "tok"] = "emb"
    """A vector for each text, or the encoder's state at each token."""
    inputs: Literal["both", "history", "preference"] = "both"
    """What is read; one of them alone is an ablation."""
    encoder: str = ""
    """What reads texts: minilm, a folder, or a Hugging Face name; empty: the encoder of the codes (for emb
    there is no other)."""
    encoder_hash: str = ""
    """Of the encoder; written here by the training, and checked whenever it is loaded."""
    text_dim: int = 0
    """Width of its vectors; written here by the training."""
    adapter: Literal["none", "lora"] = "none"
    """tok: the encoder is frozen, or learns low-rank adapters (needs ensuite[lora])."""
    adapter_rank: int = 16
    """lora: rank of the adapters."""
    adapter_alpha: int = 1
    """lora: their scale, times the rank."""
    adapter_layers: str = r".*(?i:att).*\.(query|key|value|dense|[qkvo]|([qkvo]|out)_(lin|proj))"
    """lora: which layers of the encoder, as a regular expression over their whole names: query, key, value
    and output of attention."""
    most_tokens: int = 512
    """tok: length of a text, lowered to what the encoder reads."""
    mask: bool = True
    """emb: hide padding; off as in the released code."""
    normalise: bool = False
    """Centre and scale the encoder's output before it is mapped."""
    blocks: int = 6
    """Layers of the decoder."""
    dropout: float = 0.2
    tied: bool = False
    """Score codes by the vectors of their tokens, scaled by 1 / sqrt(dim), or by vectors of their own."""
    from_codebooks: bool = False
    """Start tokens from what their codes stand for, those of a digit that tells duplicates apart from
    sinusoids."""
    token_dim: int = 0
    """from_codebooks: width of the codebooks; written here by the training."""
    negative: Literal["unlikelihood", "clamped"] = "unlikelihood"
    """How targets that must not come are learned: -log(1 - p) of each code, or minus its cross-entropy, as
    long as the code is likelier than by chance."""
    negative_weight: float = 1.0
    """Weight of such targets."""

    @property
    def reads_preferences(self) -> bool:
        """Whether there are preferences among the `inputs`."""
        return self.inputs != "history"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.negative_weight < 0 or self.adapter_rank < 1:
            raise ValueError("negative_weight is at least 0, adapter_rank at least 1")
        if self.form == "emb" and self.adapter != "none":
            raise ValueError("adapter = lora changes the encoder; form = emb has its vectors for good")
        if self.form == "tok" and not self.mask:
            raise ValueError("mask = false is a matter of form = emb")
        if self.from_codebooks and self.tied:
            raise ValueError(
                "tied scores codes by tokens of width dim; from_codebooks gives them another one"
            )


class Mender(OrderedGenerator):
    """A decoder that writes the codes of the next item from a preference and the texts of the last ones."""

    Config = MenderConfig
    reads: ClassVar[tuple[str, ...]] = ("codes", "vectors", "codebooks", "texts", "preferences")
    samples = ("prefixes", "last-position")
    summary = "Generative retrieval steered by preferences in words, which it reads with the history"
    paper = "Paischer et al., TMLR 2025, arXiv:2412.08604"
    family = "generative"
    state = "measured"
    item_content: Tensor
    """emb: the items' vectors, [V + 1, E] float32; tok: their tokens, [V + 1, W] int32, each one more than
    its number, 0 where there is none."""

    def __init__(self, config: MenderConfig, n_items: int, objective: Objective | None = None):
        super().__init__(config, n_items, objective)
        c, sizes = config, config.level_sizes
        self.first_tokens = [sum(sizes[:level]) for level in range(len(sizes))]
        self.begin_token = sum(sizes)
        width = c.token_dim if c.from_codebooks else c.dim
        self.tokens = nn.Embedding(self.begin_token + 1, width)
        nn.init.normal_(self.tokens.weight)
        self.widen = nn.Linear(width, c.dim, bias=False) if width != c.dim else None
        self.head = None if c.tied else nn.Linear(c.dim, sum(sizes), bias=False)
        self.read = nn.Linear(c.text_dim, c.dim)
        self.decoder = Stack(c.shape, c.blocks, causal=True, cross=True)
        empty = torch.zeros(n_items + 1, c.text_dim) if c.form == "emb" else torch.zeros(n_items + 1, 1).int()
        self.register_buffer("item_content", empty)
        # Not a submodule: its weights are no part of the run, and it is never in training mode.
        self._loaded: list[SentenceEncoder] = []
        self.adapters = nn.ParameterDict()
        if c.adapter == "lora" and c.encoder_hash:
            self.adapters.update(_adapt(self.text_encoder("cpu"), c))

    @classmethod
    def sized_for(cls, config: Any, materials: Materials) -> Any:
        config = super().sized_for(config, materials)
        assert materials.encoder is not None
        assert materials.vectors is not None
        made = materials.encoder["name"] or ""
        of_text = bool(made) and not made.startswith("run:") and not materials.encoder.get("images")
        name = config.encoder or (made if of_text else "")
        if not name or (config.form == "emb" and not of_text):
            raise EnsuiteError(
                f"mender reads preferences by a text encoder, and the codes were made of {made or 'images'}, "
                "not of texts alone: make them so (--codes.encoder minilm), or take --model.form tok with a "
                "--model.encoder"
            )
        if config.form == "emb" and name != made:
            raise EnsuiteError(
                f"model.encoder = {name}: form emb reads by the encoder of the codes, {made}; leave it out, "
                "or make the codes with it"
            )
        sizes: dict[str, Any] = {"encoder": name, "encoder_hash": materials.encoder["hash"]}
        sizes["text_dim"] = materials.vectors.shape[1]
        if config.form == "tok":
            from ensuite.content.encoders import load_encoder

            found = load_encoder(name)
            most = getattr(found.model.config, "max_position_embeddings", None) or config.most_tokens
            least = PREFERENCE_TOKENS + ITEM_TOKENS
            sizes |= {"encoder_hash": found.hash, "text_dim": found.model.config.hidden_size}
            sizes["most_tokens"] = min(most, config.most_tokens)
            if sizes["most_tokens"] < least:
                raise EnsuiteError(f"most_tokens: form tok needs {least}; {name} reads {most} at most")
        if config.from_codebooks:
            if not materials.codebooks:
                raise EnsuiteError("from_codebooks: these codes stand for nothing; use rq-k-means or rq-vae")
            sizes["token_dim"] = materials.codebooks[0].shape[1]
        return dataclasses.replace(config, **sizes)

    def take(self, materials: Materials) -> None:
        super().take(materials)
        if self.config.form == "emb":
            assert materials.vectors is not None
            self.item_content = materials.vectors[: self.n_items + 1].to(self.item_content)
        else:
            assert materials.texts is not None
            end = self.text_encoder("cpu").tokenizer
            found = self._tokenise(materials.texts[: self.n_items + 1], ITEM_TOKENS - 1)
            ended = [[*one, _end_of(end)] if one else [] for one in found]
            self.item_content = _padded(ended).to(self.item_content)
        if self.config.from_codebooks:
            assert materials.codebooks is not None
            self._start_tokens(materials.codebooks)

    def with_codes(self, codes: Tensor, vectors: Tensor | None = None) -> Self:
        """Do as `Generator.with_codes`; in histories the new items are read by their ``vectors``, and passed
        over without (and in ``form: tok``, for want of their texts)."""
        grown = super().with_codes(codes)
        content = F.pad(self.item_content, (0, 0, 0, len(codes)))
        if vectors is not None and self.config.form == "emb":
            content[-len(codes) :] = vectors
        grown._buffers["item_content"] = content
        return grown

    # -- texts --

    def text_encoder(self, device: torch.device | str) -> SentenceEncoder:
        """Return the encoder of this run, loaded when it is first asked for.

        Raises
        ------
        EnsuiteError
            When it is not there, or is another one than the run was trained with.
        """
        from ensuite.content.encoders import load_encoder

        if not self._loaded:
            found = load_encoder(self.config.encoder)
            if found.hash != self.config.encoder_hash:
                raise EnsuiteError(
                    f"{self.config.encoder}: not the encoder that this model was trained with: its hash is "
                    f"{found.hash}, the run's {self.config.encoder_hash}; give it back its files, or train "
                    "anew"
                )
            found.model.requires_grad_(False)
            self._loaded.append(found)
        encoder = self._loaded[0]
        if str(encoder.device) != str(device):
            encoder.model.to(device)
            encoder.device = str(device)
        return encoder

    def reads_preferences(self) -> bool:
        return self.config.reads_preferences

    def encode_preferences(self, texts: Sequence[str]) -> Tensor:
        """Return vectors [N, E] float32 (emb), or tokens [N, W] int64, each one more than its number (tok).

        Vectors of several texts are kept in the cache of content vectors, and read from there.

        Raises
        ------
        EnsuiteError
            When a text is empty, or (tok) longer than what is never cut.
        """
        device = self.read.weight.device
        empty = [text for text in texts if not text.strip()]
        if empty:
            raise EnsuiteError("a preference is empty: say in words what is wanted, or leave it out")
        if self.config.form == "emb":
            from ensuite.content.vectors import encode_texts

            encoder = self.text_encoder(device)
            if len(texts) == 1:  # a request's: sooner encoded than looked up
                return torch.from_numpy(encoder.encode(texts))
            known, _ = encode_texts(list(dict.fromkeys(texts)), encoder)
            return torch.from_numpy(np.stack([known[text] for text in texts]))
        found = self._tokenise([text.rstrip(". ") + "." for text in texts], None)
        longest = max(range(len(found)), key=lambda n: len(found[n]))
        if len(found[longest]) > PREFERENCE_TOKENS:
            raise EnsuiteError(
                f"a preference of {len(found[longest])} tokens ({texts[longest][:40]!r}...): at most "
                f"{PREFERENCE_TOKENS} are read, and none is cut"
            )
        return _padded(found, PREFERENCE_TOKENS).long()

    def _tokenise(self, texts: Sequence[str], most: int | None) -> list[list[int]]:
        """Return the tokens of each text, each one more than its number."""
        tokenizer = self.text_encoder(self.read.weight.device).tokenizer
        found = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[token + 1 for token in one[:most]] for one in found]

    # -- memory --

    def memory(self, history: History) -> tuple[Tensor, Tensor | None]:
        """Return what the decoder reads of each row, [B, S, D], and where it is real, [B, S]."""
        stated, items = history.preferences, history.items
        if stated is None or not self.reads_preferences():
            width = self.config.text_dim if self.config.form == "emb" else 1
            stated = self.item_content.new_zeros(len(items), 1, width)
        if self.config.inputs == "preference":
            items = items[:, :0]
        elif not self.config.mask:
            items = F.pad(items, (0, self.config.max_length - items.shape[1]))
        content = self.item_content[items]  # [B, L, E] or [B, L, W]
        if self.config.form == "emb":
            states, mask = torch.cat([stated, content], 1), torch.cat([stated, content], 1).any(-1)
            mask[:, 0] = True  # without a preference: the bias alone
        else:
            states, mask = self._read_tokens(stated, content)
        if self.config.normalise:
            states = F.layer_norm(states, states.shape[-1:])
        return self.read(states), mask if self.config.mask else None

    def lay_out(self, stated: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are read, [B, S] int64, and where they are real: the tag, the preferences
        [B, P, W], then as many of the newest items [B, L, W] as there is room for, oldest first."""
        tokenizer = self.text_encoder(stated.device).tokenizer
        begin = [tokenizer.cls_token_id, tokenizer.bos_token_id]
        head = [token + 1 for token in begin if token is not None][:1] + self._tokenise([TAG], None)[0]
        rows = len(stated)
        front = torch.tensor(head, device=stated.device).expand(rows, -1)
        sep = torch.full((rows, 1), _end_of(tokenizer), device=stated.device)
        front = torch.cat([front, stated.flatten(1).long(), sep], 1)
        room = self.config.most_tokens - (front > 0).sum(1)  # [B]
        newest_first = (content > 0).sum(-1).flip(1).cumsum(1)  # [B, L], tokens up to there
        fits = (newest_first <= room[:, None]).flip(1)
        words = torch.cat([front, (content.long() * fits[..., None]).flatten(1)], 1)
        real = words > 0
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)[:, : int(real.sum(1).max())]
        real = real.gather(1, order)
        return torch.where(real, words.gather(1, order) - 1, tokenizer.pad_token_id or 0), real

    def _read_tokens(self, stated: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        words, real = self.lay_out(stated, content)
        encoder = self.text_encoder(words.device).model
        return encoder(input_ids=words, attention_mask=real.long()).last_hidden_state, real

    # -- training --

    def loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the targets' codes, the mean over targets and levels; targets that are
        not to come count by `negative`."""
        row, position = batch.targets.nonzero(as_tuple=True)
        if len(row) != len(batch.targets):
            raise RuntimeError("mender learns from one target a row: preferences are those of its step")
        codes = self.codes[batch.targets[row, position]].long()  # [B, L]
        memory, mask = self.memory(batch.history)
        begin = torch.full_like(codes[:, :1], self.begin_token)
        offsets = torch.tensor(self.first_tokens, device=codes.device)
        written = torch.cat([begin, (codes + offsets)[:, :-1]], 1)  # [B, L]
        hidden = self.decoder(self.embed(written), None, memory, mask)  # [B, L, D]
        losses = [self._level_loss(hidden, codes, level, batch.unwanted) for level in range(codes.shape[1])]
        return torch.stack(losses).mean()

    def _level_loss(self, hidden: Tensor, codes: Tensor, level: int, unwanted: Tensor | None) -> Tensor:
        logits = self.logits(hidden[:, level], level).float()
        wanted = F.cross_entropy(
            logits, codes[:, level], label_smoothing=self.label_smoothing, reduction="none"
        )  # [B]
        if unwanted is None or not bool(unwanted.any()):
            return wanted.mean()
        log_p = -F.cross_entropy(logits, codes[:, level], reduction="none")
        if self.config.negative == "unlikelihood":
            against = -torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
        else:
            chance = torch.tensor(float(self.config.level_sizes[level]), device=log_p.device).log()
            against = (log_p + chance).clamp(min=0)
        return torch.where(unwanted, self.config.negative_weight * against, wanted).mean()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the vectors of ``tokens`` [...] as the decoder reads them: [..., D]."""
        vectors = self.tokens(tokens)
        return vectors if self.widen is None else self.widen(vectors)

    def logits(self, hidden: Tensor, level: int) -> Tensor:
        """Return the scores of the codes of ``level``: [..., D] to [..., K]."""
        first, size = self.first_tokens[level], self.config.level_sizes[level]
        if self.head is not None:
            return hidden @ self.head.weight[first : first + size].T
        return hidden * self.config.dim**-0.5 @ self.tokens.weight[first : first + size].T

    @torch.no_grad()
    def _start_tokens(self, books: Sequence[Tensor]) -> None:
        """Put the codebooks into the tokens; the level after them, if there is one, gets sinusoids."""
        for level, book in enumerate(books):
            first = self.first_tokens[level]
            self.tokens.weight[first : first + len(book)] = book.to(self.tokens.weight)
        for level in range(len(books), len(self.first_tokens)):
            first, size = self.first_tokens[level], self.config.level_sizes[level]
            self.tokens.weight[first : first + size] = _sinusoids(size, self.tokens.embedding_dim)

    # -- search --

    def log_probs(self, hidden: Tensor, level: int) -> Tensor:
        """Return the log-probabilities of the codes of ``level``: [..., D] to [..., K]."""
        return self.logits(hidden, level).float().log_softmax(-1)

    def begin(self, history: History) -> Start:
        memory, mask = self.memory(history)
        token = torch.full_like(history.items[:, :1], self.begin_token)
        one = torch.ones_like(token[:, 0])
        hidden, cache = self.decoder.begin(self.embed(token), one, memory, mask)
        return self.log_probs(hidden, 0), (0, cache)

    def step(self, codes: Tensor, parents: Tensor, state: tuple[int, Cache]) -> tuple[Tensor, Any]:
        level, cache = state
        hidden, cache = self.decoder.step(self.embed(codes + self.first_tokens[level]), parents, cache)
        return self.log_probs(hidden, level + 1), (level + 1, cache)


def _adapt(encoder: SentenceEncoder, config: MenderConfig) -> dict[str, nn.Parameter]:
    """Put low-rank adapters into an encoder; return them, by names that a module may have."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise EnsuiteError(
            "adapter = lora: the library peft is needed: pip install 'ensuite[lora]'"
        ) from None
    adapters = LoraConfig(
        r=config.adapter_rank, lora_alpha=config.adapter_alpha, target_modules=config.adapter_layers
    )
    try:
        inject_adapter_in_model(adapters, encoder.model)
    except ValueError as error:
        raise EnsuiteError(f"adapter_layers: {error}") from None
    named = encoder.model.named_parameters()
    return {name.replace(".", "/"): tensor for name, tensor in named if tensor.requires_grad}


def _end_of(tokenizer: Any) -> int:
    """Return the token that ends a part of a text, plus one; 0 when the tokeniser has none."""
    ends = [token for token in (tokenizer.sep_token_id, tokenizer.eos_token_id) if token is not None]
    return ends[0] + 1 if ends else 0


def _padded(lists: Sequence[Sequence[int]], width: int = 0) -> Tensor:
    """Return lists of numbers as a matrix of int32, 0 behind the shorter ones."""
    out = torch.zeros(len(lists), max(width, *map(len, lists), 1), dtype=torch.int32)
    for row, one in zip(out, lists):
        row[: len(one)] = torch.tensor(one, dtype=torch.int32)
    return out


def _sinusoids(n: int, dim: int) -> Tensor:
    """Return position vectors 0 .. n - 1 of Vaswani et al. (2017), base 10,000: [n, dim]."""
    place = torch.arange(n)[:, None] * 10_000.0 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([place.sin(), place.cos()], 2).flatten(1)[:, :dim]
