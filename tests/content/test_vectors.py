"""Content vectors: every text once, ever; what has no text is counted, and what it gets is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensuite.content import vectors as module
from ensuite.content.cache import VectorCache, key_of
from ensuite.content.vectors import encode_items, encode_texts
from ensuite.errors import EnsuiteError


class Counting:
    """An encoder of letters that remembers what it was asked."""

    name, hash, dim = "letters", "abc", 4

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[t.count(c) for c in "abcd"] for t in texts], np.float32)


ITEMS = pl.DataFrame({"item_id": [7, 8, 9, 10], "title": ["ab", "cc", "ab", None]})


def test_equal_texts_are_encoded_once_and_counted(tmp_path: Path) -> None:
    encoder = Counting()
    found = encode_items(ITEMS, "{title}", encoder, where="data", without_text="zero", cache=tmp_path)
    assert sorted(encoder.asked) == ["ab", "cc"]
    assert found.vectors.tolist() == [[1, 1, 0, 0], [0, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert found.has_content.tolist() == [True, True, True, False]
    assert found.item_ids == [7, 8, 9, 10]
    assert found.counts == {
        "items": 4, "without_text": 1, "different_texts": 2, "repeated": 1, "encoded": 2
    }  # fmt: skip
    assert found.source["hash"] == "abc"
    assert found.source["template"] == "{title}"


def test_what_was_encoded_is_read_again(tmp_path: Path) -> None:
    first, second, other = Counting(), Counting(), Counting()
    a, _ = encode_texts(["ab", "b"], first, tmp_path)
    b, now = encode_texts(["b", "ab", "d"], second, tmp_path)
    assert second.asked == ["d"]
    assert now == 1
    assert all(np.array_equal(a[text], b[text]) for text in a)
    other.hash = "other"
    encode_texts(["ab"], other, tmp_path)
    assert other.asked == ["ab"]


def test_items_without_text_are_refused_or_get_what_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match=r"data: 1 of 4 items have no text \(such as 10\)"):
        encode_items(ITEMS, "{title}", Counting(), where="data", cache=tmp_path)
    encoder = Counting()
    found = encode_items(ITEMS, "{title}", encoder, where="data", without_text="id", cache=tmp_path)
    assert "10" in encoder.asked
    assert found.has_content.all()
    assert found.counts["without_text"] == 1
    with pytest.raises(EnsuiteError, match="empty for all"):
        encode_items(ITEMS[3:], "{title}", encoder, where="data", without_text="zero", cache=tmp_path)


def test_an_interrupted_run_keeps_what_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "KEPT", 4)
    texts = [f"{'a' * i}" for i in range(1, 11)]

    class Stopped(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            if len(self.asked) == 6:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts, Stopped(), tmp_path)
    after, seen = Counting(), []
    known, now = encode_texts(texts, after, tmp_path, lambda done, total: seen.append((done, total)))
    assert now == len(after.asked) == 6  # the first four had been kept
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert [known[text][0] for text in texts] == list(range(1, 11))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode_texts(["ab"], Counting(), tmp_path)
    (file,) = (tmp_path / "content" / "abc").iterdir()
    file.write_bytes(file.read_bytes()[:30])
    again = Counting()
    known, _ = encode_texts(["ab"], again, tmp_path)
    assert again.asked == ["ab"]
    assert known["ab"].tolist() == [1, 1, 0, 0]
    assert "damaged, its texts are encoded again" in caplog.text
    assert encode_texts(["ab"], again, tmp_path)[1] == 0


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "content").write_text("a file where a folder is wanted")
    with pytest.raises(EnsuiteError, match=r"cannot be written .*give another --cache"):
        encode_texts(["ab"], Counting(), tmp_path)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(Counting):
        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return super().encode(texts) / np.array([0, 1, 1, 1], np.float32)

    with np.errstate(all="ignore"), pytest.raises(EnsuiteError, match="not finite, of 'ab'"):
        encode_texts(["ab"], Broken(), tmp_path)
    assert not (tmp_path / "content").exists()


def test_the_users_cache_is_used_when_none_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENSUITE_CACHE", str(tmp_path))
    encode_texts(["ab"], Counting())
    assert list((tmp_path / "content" / "abc").iterdir())
    assert len(key_of("a")) == 16
    assert VectorCache(tmp_path, "unknown").read(["a"]) == {}
