"""Images and texts -> vectors of one space, by an image-text model of sentence-transformers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miner.models.encoder import load_model
from miner.models.hub import Encoder, hardware, own_device

DEFAULT = "openai/clip-vit-base-patch32"
AT_ONCE = 64  # images in memory


class ImageText:
    """A model that gives vectors of images and of texts."""

    def __init__(self, encoder: Encoder):
        device, dtype = hardware(encoder.device, encoder.dtype)
        self.model = load_model(encoder, own_device(device), dtype)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (n, d) float32."""
        return self._encode(list(texts))

    def images(self, files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """Return unit vectors (n, d) float32 of images, and which could be read (n,)."""
        read, parts = np.zeros(len(files), bool), []
        for start in range(0, len(files), AT_ONCE):
            opened = list(_opened_images(files[start : start + AT_ONCE]))
            read[[start + place for place, _ in opened]] = True
            if opened:
                parts.append(self._encode([image for _, image in opened]))
        width = parts[0].shape[1] if parts else 1
        out = np.zeros((len(files), width), np.float32)
        out[read] = np.concatenate(parts) if parts else 0
        return out, read

    def _encode(self, inputs: list[Any]) -> np.ndarray:
        found = self.model.encode(
            inputs, batch_size=AT_ONCE, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)


def _opened_images(files: Sequence[Path]) -> Iterator[tuple[int, Any]]:
    """Yield place and pixels of the images that can be read."""
    from PIL import Image, UnidentifiedImageError

    for place, file in enumerate(files):
        try:
            with Image.open(file) as image:
                yield place, image.convert("RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
