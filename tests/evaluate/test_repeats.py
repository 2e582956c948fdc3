"""Metrics of repeats and discoveries, against numbers worked out by hand, and the sheet's invariants."""

from __future__ import annotations

from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluate.fakes import TableScorer

from ensuite.data.act_r_logs import act_r_log
from ensuite.data.dataset import Cases, Dataset, Events
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError
from ensuite.evaluate.compare import compare
from ensuite.evaluate.entries import Entry
from ensuite.evaluate.evaluate import default_metrics, evaluate
from ensuite.evaluate.metrics import compute_metrics, per_case
from ensuite.evaluate.ranks import Ranks, compute_ranks
from ensuite.evaluate.repeats import balance, mark_repeats
from ensuite.evaluate.statistics import bootstrap_means, intervals, paired_p, user_means
from ensuite.models.personal_repeat import PersonalRepeat, PersonalRepeatConfig

# Scores order the items 1, 2, 3, ... User 0 trained on 1, 4, 9; user 1 on 2.
ITEMS = np.array([1, 4, 9, 1, 3, 9, 2, 8, 2, 2, 5, 6], np.int32)
TRAIN = Events(np.array([0, 8]), np.array([3, 9]), ITEMS, None, 1.0, 12)
WHOLE = Events(np.array([0, 8]), np.array([8, 12]), ITEMS, None, 1.0, 12)
CASES = Cases(np.array([0, 0, 1]), np.array([0, 0, 8]), np.array([3, 6, 9]), np.array([6, 8, 12]))
NAMES = ("ndcg-rep@4", "ndcg-exp@4", "recall-rep@4", "recall-exp@4")


def ranks(top: int = 4, train: Events = TRAIN) -> Ranks:
    model = TableScorer(-np.arange(13.0))  # type: ignore[arg-type]
    return mark_repeats(compute_ranks(model, WHOLE, CASES, exclude="none", top=top), train)


def test_parts_by_hand() -> None:
    """Targets and which are repeats: {1, 9} and new 3; new {2, 8}; {2} and new {5, 6}."""
    found = ranks()
    assert found.repeat is not None
    assert found.repeat.tolist() == [True, False, True, False, False, True, False, False]
    nan = np.nan
    two = 1 + 1 / log2(3)
    wanted = {
        "ndcg-rep@4": [1 / two, nan, 1 / log2(3)],
        "recall-rep@4": [1 / 2, nan, 1],
        "ndcg-exp@4": [1 / log2(4), 1 / log2(3) / two, 0],
        "recall-exp@4": [1, 1 / 2, 0],
    }
    for name, values in wanted.items():
        np.testing.assert_allclose(per_case(found, name), values)
    means = compute_metrics(found, NAMES)  # over the user's cases that have a value, then over users
    assert means["ndcg-rep@4"] == pytest.approx((1 / two + 1 / log2(3)) / 2)
    assert means["recall-exp@4"] == pytest.approx((3 / 4 + 0) / 2)
    np.testing.assert_allclose(balance(found, "rep-ratio", 4), [0.5, 0.5, 0.25])
    np.testing.assert_allclose(balance(found, "rep-bias", 4), [0.5 - 2 / 3, 0.5, 0.25 - 1 / 3])


def test_with_everything_known_rep_is_the_whole_and_exp_is_undefined() -> None:
    heard = np.tile(np.arange(1, 13, dtype=np.int32), 2)
    everything = Events(np.array([0, 12]), np.array([12, 24]), heard, None, 1.0, 12)
    found = ranks(train=everything)
    np.testing.assert_array_equal(per_case(found, "ndcg-rep@4"), per_case(found, "ndcg@4"))
    assert np.isnan(per_case(found, "ndcg-exp@4")).all()
    assert np.isnan(compute_metrics(found, ["ndcg-exp@4"])["ndcg-exp@4"])
    assert (balance(found, "rep-ratio", 4) == 1).all()


def test_ndcg_of_several_targets_is_the_sheets() -> None:
    """sum over hits of 1 / log2(i + 1), over that of min(n, k) first places."""
    gain = [1 / log2(i + 1) for i in range(1, 5)]
    wanted = [(gain[0] + gain[2]) / sum(gain[:3]), gain[1] / sum(gain[:2]), gain[1] / sum(gain[:3])]
    np.testing.assert_allclose(per_case(ranks(), "ndcg@4"), wanted)


def test_what_is_not_marked_or_not_listed_is_refused() -> None:
    model = TableScorer(-np.arange(13.0))  # type: ignore[arg-type]
    plain = compute_ranks(model, WHOLE, CASES, exclude="none")
    with pytest.raises(EnsuiteError, match="mark_repeats"):
        per_case(plain, "ndcg-rep@4")
    with pytest.raises(EnsuiteError, match="top=5"):
        balance(ranks(top=4), "rep-ratio", 5)
    with pytest.raises(EnsuiteError, match="sampled metrics are named like"):
        per_case(plain, "ndcg-rep@4/uniform-5")


def test_statistics_leave_out_who_has_no_value() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan])
    np.testing.assert_array_equal(user_means(values, np.array([0, 0, 1, 1, 2])), [1, 3, np.nan])
    column = np.array([0.0, 1.0, np.nan, 1.0, np.nan])[:, None]
    drawn = bootstrap_means(column, 200)
    assert not np.isnan(drawn).any() or np.isnan(drawn).mean() < 0.05
    assert intervals(np.array([[1.0], [np.nan]] * 30))[0].mean == 1
    assert paired_p(np.array([1, 2, np.nan, 3.0]), np.array([1, 2, np.nan, 3.0])) == 1.0
    a, b = np.random.default_rng(0).random((2, 30))
    there = np.arange(30) < 20
    gaps = [np.where(there, x, np.nan) for x in (a, b)]
    assert paired_p(*gaps) == paired_p(a[there], b[there])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    log = act_r_log((0.7, 0.2, 0.1), users=60, sessions=14, seed=4).events
    config = PrepareConfig(split="sessions", held_sessions=(1, 3))
    return prepare(log, out=tmp_path_factory.mktemp("sessions") / "data", config=config)


def personal(data: Dataset, decay: float) -> PersonalRepeat:
    model = PersonalRepeat(PersonalRepeatConfig(decay=decay), data.n_items)
    model.fit(data.events("train"))
    return model


def test_a_sessions_split_is_measured_with_repeats(data: Dataset) -> None:
    result = evaluate(personal(data, 0.0), data)
    assert tuple(result.metrics) == default_metrics(data)
    assert len(result.ranks) == 3 * data.n_users
    assert (result.ranks.n_candidates == data.n_items).all()  # nothing is left out
    assert result.metrics["rep-ratio@10"] > 0.9  # the last tracks may be those of test sessions before
    assert result.metrics["ndcg-rep@10"] > 5 * result.metrics["ndcg-exp@10"]
    first = evaluate(personal(data, 0.0), data, "valid")  # nothing but training before it
    assert first.metrics["rep-ratio@10"] == 1.0
    assert first.metrics["ndcg-exp@10"] == 0.0


def test_recent_tracks_come_again_more_than_frequent_ones(data: Dataset) -> None:
    frequent, recent = (evaluate(personal(data, decay), data).metrics for decay in (0.0, 0.5))
    assert recent["ndcg@10"] > frequent["ndcg@10"]


def test_cohorts_are_users_with_all_their_cases(data: Dataset) -> None:
    result = evaluate(personal(data, 0.5), data)
    cohorts = result.cohorts(20)
    assert set(cohorts) == set(default_metrics(data)) - {"arp@10"}
    some = np.random.default_rng(1013).choice(np.unique(result.ranks.user), 20, replace=False)
    one = compute_metrics(result.ranks.take(np.isin(result.ranks.user, some)), ["ndcg@10"])["ndcg@10"]
    assert result.cohorts(20, seeds=[1013])["ndcg@10"] == (one, 0.0)
    assert cohorts["ndcg@10"][1] > 0
    everybody = result.cohorts(data.n_users)["ndcg@10"]
    assert everybody == pytest.approx((result.metrics["ndcg@10"], 0.0))
    with pytest.raises(EnsuiteError, match=r"cohorts of 99 users: 60 users have cases"):
        result.cohorts(99)


def test_compare_tests_users_not_sessions(data: Dataset, tmp_path: Path) -> None:
    runs = {"top": personal(data, 0.0), "act-r": personal(data, 0.5)}
    result = compare(runs, dataset=data, resamples=50, out=tmp_path / "report")
    assert result.protocol["exclude"] == "none"
    assert result.rows[0].name == "act-r"
    assert result.metrics[0] == "ndcg@10"
    assert result.row("top").tests["ndcg-exp@10"].p <= 1
    assert result.row("top").beyond["rep-ratio@10"] > 0.9
    assert "nan" not in (tmp_path / "report" / "table.md").read_text()


def test_runs_measured_by_another_rule_are_refused(data: Dataset) -> None:
    def entry(name: str, exclude: str) -> Entry:
        card: dict[str, Any] = {"protocol": {"exclude": exclude}}
        return Entry(name, personal(data, 0.5), card)

    with pytest.raises(EnsuiteError, match="exclude"):
        compare([entry("a", "none"), entry("b", "seen")], dataset=data)


def test_processes_share_sessions_as_they_share_users(data: Dataset) -> None:
    events, cases = data.events("all"), data.cases("test")
    model = personal(data, 0.5)
    whole = compute_ranks(model, events, cases, exclude="none", batch_size=16)
    halves = [compute_ranks(model, events, cases, exclude="none", batch_size=16, part=(r, 2)) for r in (0, 1)]
    assert sorted(np.concatenate([h.case for h in halves])) == list(range(len(cases)))
    assert torch.tensor([len(h) for h in halves]).sum() == len(whole)
