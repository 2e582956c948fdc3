"""What REG4Rec's paths are rewarded with, and how a policy moves towards the better ones (PARS, MSRA)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ensuite.config import config

log = logging.getLogger(__name__)


@config
class PARSConfig:
    """Preference alignment for reasoning steps: GRPO on groups of paths."""

    epochs: int = 2
    """Epochs of this stage."""
    lr: float = 1e-5
    """Its learning rate, constant."""
    stride: int = 0
    """Distance between a user's samples in it; 0 = samples.stride."""
    group: int = 8
    """Paths drawn for each sample."""
    temperature: float = 1.0
    """At which they are drawn."""
    refresh_every: int = 1
    """Epochs after which they are drawn anew, from the model as it then is; 0: the first ones are kept."""
    clip: float = 0.2
    """How far the ratio of new to old probability may move from 1 and still be rewarded."""
    kl: float = 1e-3
    """Weight of the divergence from the model that the first stage left (beta)."""
    step_hit: float = 1.0
    """Weight of the share of codes that are the target's."""
    global_path: float = 1.0
    """Weight of having all of them."""
    category_hit: float = 1.0
    """Weight of the share of steps that predict the target's category."""
    step_consistency: float = 1.0
    """Weight of the share of adjacent steps that predict the same category."""
    gamma: float = 0.8
    """MSRA: weight of the reward against an item relative to that against the item before it; how many items
    there are is samples.ahead (1: only the target)."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.group < 2:
            raise ValueError("epochs is at least 1, and a group at least 2 paths")
        if self.lr <= 0 or self.temperature <= 0 or self.clip <= 0:
            raise ValueError("lr, temperature and clip are positive")
        if min(self.stride, self.refresh_every) < 0 or self.kl < 0:
            raise ValueError("stride, refresh_every and kl are at least 0")
        if min(self.weights) < 0:
            raise ValueError("the rewards' weights are at least 0")
        if not 0 < self.gamma <= 1:
            raise ValueError(
                f"gamma = {self.gamma}: above 0 and at most 1, so that later items weigh no more"
            )

    @property
    def weights(self) -> tuple[float, float, float, float]:
        """The weights of the four rewards, in the order of `count_hits`."""
        return self.step_hit, self.global_path, self.category_hit, self.step_consistency


def count_hits(codes: Tensor, categories: Tensor, target: Tensor, target_category: Tensor) -> Tensor:
    """Return Step-Hit, Global-Path, Category-Hit and Step-Consistency of paths: [..., 4] float32.

    Parameters
    ----------
    codes, target
        By codebook, [..., M], of the path and of the item that it should have reached.
    categories
        Predicted after each step, [..., M].
    target_category
        [...].

    Examples
    --------
    >>> count_hits(*map(torch.tensor, ([5, 2, 7], [27, 30, 30], [5, 3, 7], 27)))
    tensor([2., 0., 1., 1.])
    """
    right = codes == target
    of_category = categories == target_category[..., None]
    coherent = (categories[..., 1:] == categories[..., :-1]).sum(-1).expand(right.shape[:-1])
    return torch.stack([right.sum(-1), right.all(-1), of_category.sum(-1), coherent], -1).float()


def path_rewards(
    codes: Tensor, categories: Tensor, ahead: Tensor, ahead_categories: Tensor, real: Tensor, c: PARSConfig
) -> Tensor:
    """Return the rewards [B, G] of groups of paths against the N items ahead of each history.

    Each of the four is divided by its maximum and weighed; those against the n-th item by gamma^(n - 1).

    Parameters
    ----------
    codes, categories
        Of the paths, [B, G, M].
    ahead, ahead_categories, real
        Codes [B, N, M] and categories [B, N] of the items, and where there are any, [B, N]: no reward comes
        from the others.
    """
    steps = codes.shape[-1]
    most = codes.new_tensor([steps, 1, steps, max(1, steps - 1)])
    hits = count_hits(
        codes[:, :, None], categories[:, :, None], ahead[:, None], ahead_categories[:, None]
    )  # [B, G, N, 4]
    rewards = (hits / most * hits.new_tensor(c.weights)).sum(-1)  # [B, G, N]
    decay = c.gamma ** torch.arange(ahead.shape[1], device=hits.device) * real  # [B, N]
    return (rewards * decay[:, None]).sum(-1)


def advantages(rewards: Tensor) -> Tensor:
    """Return how much better than its group each path is, in deviations: [B, G] of ``rewards`` [B, G]; all 0
    where they are equal."""
    exact = rewards.double()  # equal rewards have a mean that is exactly theirs, or nearly
    centred = exact - exact.mean(1, keepdim=True)
    return (centred / (exact.std(1, correction=0, keepdim=True) + 1e-4)).float()


def clipped_loss(
    log_probs: Tensor, behaviour: Tensor, reference: Tensor, advantage: Tensor, c: PARSConfig
) -> Tensor:
    """Return GRPO's loss, the mean over the steps of all paths: a scalar.

    -min(r A, clip(r) A) + beta (e^d - d - 1), where r is the ratio of a code's probability to that under the
    policy that drew it, and d how much likelier the reference finds it (the divergence's usual estimator).

    Parameters
    ----------
    log_probs, behaviour, reference
        Of the codes, [B, G, M]. Which codebook comes next is not drawn, so nothing of it counts.
    advantage
        [B, G].
    """
    ratio, gain = (log_probs - behaviour).exp(), advantage[..., None]
    least = torch.minimum(ratio * gain, ratio.clamp(1 - c.clip, 1 + c.clip) * gain)
    apart = reference - log_probs
    return (c.kl * (apart.exp() - apart - 1) - least).mean()


def report(predicted: Tensor, true: Tensor, rewards: Tensor) -> None:
    """Log what paths are worth, [S, G]; warn when nearly all their steps predict one category, which the
    reward for consistency pays for whatever the target is. ``predicted`` and ``true`` count the categories
    of steps and of items, [C] each."""
    said, of_items = _entropy(predicted), _entropy(true)
    log.info(
        "paths drawn: mean reward %.3f, deviation in a group %.3f, entropy of the predicted categories %.2f "
        "nats (of the items' %.2f)",
        float(rewards.mean()),
        float(rewards.std(1, correction=0).mean()),
        said,
        of_items,
    )
    if said < 0.2 * of_items:
        log.warning(
            "the steps of nearly all paths predict one category (entropy %.2f nats, the items' have %.2f): "
            "lower preference.step_consistency, or raise preference.kl",
            said,
            of_items,
        )


def _entropy(counts: Tensor) -> float:
    """Return the entropy of what was counted, in nats."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum())
