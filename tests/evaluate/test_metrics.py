from __future__ import annotations

import numpy as np
import pytest
from evaluate.fakes import TableScorer, log

from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import compute_metrics, parse_metric, per_case
from ensuite.evaluate.ranks import Ranks, compute_ranks


def ranks_of(*cases: list[float], n_items: int = 100) -> Ranks:
    counts = [len(c) for c in cases]
    n = np.arange(len(cases))
    flat = np.array([r for c in cases for r in c], float)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    zeros = np.zeros(len(flat), np.int64)
    return Ranks(n, n, n, n + n_items, offsets, zeros + 1, flat, zeros, n_items)


def test_one_target_by_hand():
    ranks = ranks_of([1], [3], [2.5], [11], [np.inf])
    assert per_case(ranks, "hr@10").tolist() == [1, 1, 1, 0, 0]
    assert per_case(ranks, "recall@10").tolist() == [1, 1, 1, 0, 0]
    assert per_case(ranks, "precision@10").tolist() == pytest.approx([0.1, 0.1, 0.1, 0, 0])
    assert per_case(ranks, "ndcg@10").tolist() == pytest.approx([1, 0.5, 1 / np.log2(3.5), 0, 0])
    assert per_case(ranks, "mrr").tolist() == pytest.approx([1, 1 / 3, 0.4, 1 / 11, 0])
    assert per_case(ranks, "mrr@10").tolist() == pytest.approx([1, 1 / 3, 0.4, 0, 0])
    assert per_case(ranks, "map@10").tolist() == pytest.approx([1, 1 / 3, 0.4, 0, 0])
    assert compute_metrics(ranks, ["hr@10", "hr@1"]) == {"hr@10": 0.6, "hr@1": 0.2}


def test_several_targets_by_hand():
    ranks = ranks_of([4, 1, 30], [2, 1])
    assert per_case(ranks, "hr@3").tolist() == [1, 1]
    assert per_case(ranks, "recall@5").tolist() == pytest.approx([2 / 3, 1])
    assert per_case(ranks, "precision@5").tolist() == pytest.approx([0.4, 0.4])
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert per_case(ranks, "ndcg@5").tolist() == pytest.approx([(1 + 1 / np.log2(5)) / ideal, 1])
    assert per_case(ranks, "ndcg@2").tolist() == pytest.approx([1 / (1 + 1 / np.log2(3)), 1])
    assert per_case(ranks, "map@5").tolist() == pytest.approx([(1 + 2 / 4) / 3, 1])
    assert per_case(ranks, "mrr").tolist() == [1, 1]


def test_tied_targets_never_exceed_one():
    ranks = ranks_of([1.5, 1.5], [2, 2, 2])
    for name in ("ndcg@10", "map@10", "recall@10", "precision@10"):
        assert (per_case(ranks, name) <= 1).all()


def test_a_half_place_is_not_the_first():
    assert compute_metrics(ranks_of([1.5]), ["hr@1"]) == {"hr@1": 0.0}


def test_no_cases_is_an_error():
    with pytest.raises(EnsuiteError, match="no cases"):
        compute_metrics(ranks_of(), ["hr@10"])


def test_cutoff_beyond_the_catalogue():
    events, cases = log([[1]], [[2]], 5)
    ranks = compute_ranks(TableScorer([0, 1, 2, 3, 4, 5]), events, cases)
    assert compute_metrics(ranks, ["hr@5"]) == {"hr@5": 1.0}
    with pytest.raises(EnsuiteError, match="larger than the 5 items"):
        compute_metrics(ranks, ["hr@6"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ngcd@10", "did you mean 'ndcg@10'"),
        ("ndcg", "needs a cut-off"),
        ("hr@0", "1 or more"),
        ("ndcg@10/unifrom-100", "did you mean 'uniform'"),
        ("coverage@10/uniform-100", "sampled metrics are named"),
        ("", "unknown metric"),
    ],
)
def test_wrong_names_are_explained(name: str, said: str):
    with pytest.raises(EnsuiteError, match=said):
        parse_metric(name)


def test_sampled_names_need_sampled_ranks():
    with pytest.raises(EnsuiteError, match="is over uniform-100, these ranks are over all items"):
        per_case(ranks_of([1]), "ndcg@10/uniform-100")
    with pytest.raises(EnsuiteError, match="describes lists"):
        per_case(ranks_of([1]), "coverage@10")
