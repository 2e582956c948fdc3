"""Random items in histories: how many, where, and always the same."""

from __future__ import annotations

import pytest
import torch

from ensuite.data.batches import History
from ensuite.data.noise import insert_noise

N = 500


def histories(n: int = 300, length: int = 10, n_items: int = N) -> History:
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, length + 1, (n, 1), generator=g)
    return History(torch.randint(1, n_items + 1, (n, length), generator=g) * (torch.arange(length) < lengths))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_history_is_kept_in_order_and_so_many_strangers_come_in(share: float) -> None:
    history = histories()
    noisy = insert_noise(history, share, N)
    for before, after in zip(history.items, noisy.items):
        known = before[before > 0]
        read = after[after > 0]
        assert (after[len(read) :] == 0).all()  # padding stays on the right
        stranger = ~torch.isin(read, known)
        assert read[~stranger].tolist() == known.tolist()
        assert int(stranger.sum()) == int(share * len(known))
        assert not bool(stranger[-1])  # noise stands before a real event


def test_it_depends_on_nothing_but_the_history() -> None:
    history = histories(40)
    noisy = insert_noise(history, 0.4, N).items
    wide = History(torch.nn.functional.pad(history.items, (0, 5)))
    assert torch.equal(insert_noise(wide, 0.4, N).items[:, : noisy.shape[1]], noisy)
    for row in range(40):
        alone = insert_noise(History(history.items[row : row + 1]), 0.4, N).items[0]
        assert torch.equal(alone[alone > 0], noisy[row][noisy[row] > 0])


def test_items_and_places_are_spread_evenly() -> None:
    history = History(torch.randint(1, 50_001, (2000, 10), generator=torch.Generator().manual_seed(1)))
    noisy = insert_noise(history, 0.1, 50_000)  # one in each
    stranger = (noisy.items[:, :, None] != history.items[:, None]).all(2)
    counts = stranger.sum(0)[:10]  # [10] places
    assert int(counts.sum()) == 2000
    assert counts.min() > 140
    assert counts.max() < 260
    quarters = torch.bincount((noisy.items[stranger] - 1) // 12_500)
    assert quarters.min() > 400
    assert quarters.max() < 600


def test_a_catalogue_that_is_all_known_does_not_hang() -> None:
    assert insert_noise(History(torch.tensor([[1, 2, 3]])), 1.0, 3).lengths.tolist() == [6]
