from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate.fakes import DotScorer, TableScorer, brute_ranks, log, random_log
from evaluate.process import rank_share

from ensuite.errors import EnsuiteError
from ensuite.evaluate import counting, scoring
from ensuite.evaluate.counting import NaNScores
from ensuite.evaluate.ranks import Ranks, compute_ranks, gather, merge


def test_ranks_by_hand_with_ties():
    model = TableScorer([99, 5, 3, 3, 3, 1, 4])
    events, cases = log([[5], [6], [5]], [[3], [1], [5]], 6)
    ranks = compute_ranks(model, events, cases)
    # user 0: candidates 1 2 3 4 6 with 5 3 3 3 4: two are higher than item 3, two are level: 1 + 2 + 1
    # user 1: item 1 is the best of 1 2 3 4 5;  user 2: the target was seen before and can never be
    # recommended
    assert ranks.rank.tolist() == [4.0, 1.0, np.inf]
    assert ranks.ties.tolist() == [2, 0, 0]
    assert ranks.n_candidates.tolist() == [5, 5, 5]
    assert ranks.unreachable == 1
    assert ranks.tie_rate == pytest.approx(1 / 3)


def test_nothing_excluded():
    model = TableScorer([0, 5, 3, 3, 3, 1, 4])
    events, cases = log([[5], [5]], [[3], [5]], 6)
    ranks = compute_ranks(model, events, cases, exclude="none")
    assert ranks.rank.tolist() == [4.0, 6.0]
    assert ranks.n_candidates.tolist() == [6, 6]


def test_a_constant_scorer_gets_the_middle_rank():
    events, cases = random_log(50, 99)
    ranks = compute_ranks(TableScorer(torch.ones(100)), events, cases, exclude="none")
    assert (ranks.rank == 50.0).all()


def test_the_models_memory_is_left_alone():
    model = TableScorer([0.0, 3, 2, 1, 5])
    events, cases = log([[1, 2]], [[3]], 4)  # one case: an expanded view of one row is the model's own memory
    compute_ranks(model, events, cases)
    assert model.table.tolist() == [0, 3, 2, 1, 5]


def test_seen_items_beyond_the_window_are_excluded():
    model = TableScorer(torch.arange(21).float())
    model.max_length = 2
    events, cases = log([[20, 19, 18, 1, 2]], [[17]], 20)
    ranks = compute_ranks(model, events, cases, top=3)
    assert ranks.rank.tolist() == [1.0]  # 18, 19 and 20 score higher, but were seen long ago
    assert ranks.lists is not None
    assert ranks.lists.tolist() == [[17, 16, 15]]


def test_items_scored_minus_infinity_are_no_candidates():
    inf = float("inf")
    events, cases = log([[1], [1]], [[2], [3]], 4)
    ranks = compute_ranks(TableScorer([0, 1, -inf, 2, -inf]), events, cases, top=3)
    assert ranks.rank.tolist() == [inf, 1.0]
    assert ranks.n_candidates.tolist() == [1, 1]
    assert ranks.lists is not None
    assert ranks.lists.tolist() == [[3, 0, 0], [3, 0, 0]]


@pytest.mark.parametrize("n_targets", [1, 4])
@pytest.mark.parametrize(
    "setting", [{}, {"item_block": 7}, {"batch_size": 3}, {"batch_size": 64, "item_block": 299}]
)
def test_blocks_and_batches_change_nothing(n_targets: int, setting: dict[str, int]):
    events, cases = random_log(n_targets=n_targets)
    model = DotScorer(300, whole=True)
    expected = brute_ranks(model, events, cases)
    ranks = compute_ranks(model, events, cases, **setting)
    assert np.array_equal(ranks.rank, expected)


def test_chunks_within_a_block_change_nothing(monkeypatch: pytest.MonkeyPatch):
    events, cases = random_log()
    model = DotScorer(300, whole=True)
    whole = compute_ranks(model, events, cases, top=10)
    monkeypatch.setattr(counting, "COUNTED_AT_ONCE", 256 * 11)
    monkeypatch.setattr(scoring, "SCORES_HELD", 300 * 50)  # smaller batches
    parts = compute_ranks(model, events, cases, top=10)
    assert np.array_equal(parts.rank, whole.rank)
    assert np.array_equal(parts.n_candidates, whole.n_candidates)
    # Which of several tied items are listed is open; their scores are not.
    assert whole.lists is not None
    assert parts.lists is not None
    for c in range(len(cases)):
        history = events.item_idx[cases.history_start[c] : cases.history_end[c]].astype(int)
        scores = model.vectors @ model.vectors[history[-10:]].sum(0)
        assert torch.equal(scores[parts.lists[c]], scores[whole.lists[c]])
        assert not set(parts.lists[c]) & set(history)


def test_real_scores_tie_exactly_across_blocks():
    """Two items with one vector are tied wherever they lie: the target's score must be the very bits of its
    block.
    """
    model = DotScorer(301, dim=50)
    model.vectors[300] = model.vectors[3]
    events, cases = random_log(n_items=299)
    events = type(events)(events.offsets, events.ends, events.item_idx.copy(), None, 1.0, 301)
    events.item_idx[cases.history_end] = 3
    keep = np.array([3 not in events.item_idx[a:b] for a, b in zip(cases.history_start, cases.history_end)])
    ranks = compute_ranks(model, events, cases.take(np.flatnonzero(keep)))
    assert (ranks.ties == 1).all()


def test_an_item_asked_for_twice_counts_once():
    events, cases = log([[1], [1]], [[3, 2, 3], [4]], 5)
    ranks = compute_ranks(TableScorer([0, 5, 4, 3, 2, 1]), events, cases)
    assert ranks.offsets.tolist() == [0, 2, 3]
    assert ranks.target.tolist() == [3, 2, 4]
    assert ranks.rank.tolist() == [2.0, 1.0, 3.0]


def test_nan_is_an_error_that_names_the_user():
    events, cases = log([[1], [2]], [[3], [4]], 5)
    with pytest.raises(NaNScores, match="NaN scores for user row"):
        compute_ranks(TableScorer([0, 1, 2, float("nan"), 4, 5]), events, cases)


def test_wrong_arguments_are_refused():
    events, cases = log([[1]], [[2]], 3)
    model = TableScorer([0, 1, 2, 3])
    with pytest.raises(EnsuiteError, match="'seen' or 'none'"):
        compute_ranks(model, events, cases, exclude="all")  # type: ignore[arg-type]
    with pytest.raises(EnsuiteError, match="catalogue has 3"):
        compute_ranks(model, events, cases, top=4)


def test_training_mode_is_restored():
    class Module(torch.nn.Module):
        max_length = 3
        catalogue = DotScorer.catalogue

        def __init__(self) -> None:
            super().__init__()
            self.vectors = torch.nn.Parameter(torch.ones(4, 2))

        def scorer(self, history, catalogue):  # type: ignore[no-untyped-def]
            assert not self.training
            return DotScorer.scorer(self, history, catalogue)  # type: ignore[arg-type]

    module = Module().train()
    compute_ranks(module, *log([[1]], [[2]], 3))
    assert module.training


def _equal(a: Ranks, b: Ranks) -> bool:
    names = ("case", "user", "history_length", "n_candidates", "offsets", "target", "rank", "ties", "lists")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_shares_merge_to_the_whole():
    events, cases = random_log(n_targets=2)
    model = DotScorer(300, dim=50)
    whole = compute_ranks(model, events, cases, batch_size=16, top=5)
    parts = [compute_ranks(model, events, cases, batch_size=16, top=5, part=(i, 3)) for i in range(3)]
    assert sum(map(len, parts)) == len(whole)
    assert _equal(merge(parts), whole)
    assert _equal(gather(whole), whole)  # no process group


def test_two_processes_give_the_ranks_of_one(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_share, (2, port, str(tmp_path)), nprocs=2)
    events, cases = random_log(n_targets=2)
    alone = compute_ranks(DotScorer(300, dim=50), events, cases, batch_size=16)
    for rank in range(2):
        got = np.load(tmp_path / f"{rank}.npz")
        assert np.array_equal(got["rank"], alone.rank)
        assert np.array_equal(got["case"], alone.case)


def test_more_processes_than_batches():
    events, cases = log([[1], [2]], [[3], [4]], 5)
    model = TableScorer([0, 1, 2, 3, 4, 5])
    parts = [compute_ranks(model, events, cases, part=(i, 3)) for i in range(3)]
    assert [len(p) for p in parts] == [2, 0, 0]
    assert _equal(merge(parts), compute_ranks(model, events, cases))


def test_restrict_and_take():
    events, cases = log([[1], [1], [1]], [[2, 3], [3], [2]], 4)
    ranks = compute_ranks(TableScorer([0, 4, 3, 2, 1]), events, cases)
    only = ranks.restrict(ranks.target == 3)
    assert only.user.tolist() == [0, 1]
    assert only.rank.tolist() == [2.0, 2.0]
    assert ranks.take(np.array([2, 0])).target.tolist() == [2, 2, 3]
