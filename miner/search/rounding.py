"""vectors -> vectors as an engine multiplies them, and bounds on how far its scores may be off.

The bound is the inequality of Cauchy and Schwarz over the measured rounding of the vectors, and the
textbook bound of a sum in float32: vectors need not be of length one.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

# row of the first document, and what reads the vectors (m, d) float32
Block = tuple[int, Callable[[], np.ndarray]]
Pieces = Iterator[tuple[int, np.ndarray]]  # the same, read and cut
PIECE = 16384  # documents that are prepared at a time
TINY = 1e-16  # of numbers so small that float32 loses them, or their squares


@dataclass(frozen=True)
class Rounded:
    """Vectors as an engine multiplies them.

    Attributes:
        values: (n, d): an array of float32, or of uint16, which are the bits of bfloat16; or a
            tensor on a device.
        norms: (n,) float64, lengths of the vectors before rounding.
        errors: (n,) float64, lengths of what rounding changed.
    """

    values: Any
    norms: np.ndarray
    errors: np.ndarray


def pieces(blocks: Iterable[Block]) -> Pieces:
    """Read blocks one after the other and cut them small."""
    for first, read in blocks:
        block = read()
        for start in range(0, len(block), PIECE):
            yield first + start, block[start : start + PIECE]


def fast_dtype(device: str) -> str:
    """Return "bf16" where the hardware multiplies it faster than float32, else "fp32"."""
    import torch

    if device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return (
        "bf16"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "fp32"
    )


def rounded(vectors: np.ndarray, dtype: str) -> Rounded:
    """Round vectors (n, d) float32 to "bf16", or copy them as "fp32", and measure them."""
    values = np.empty(vectors.shape, np.uint16 if dtype == "bf16" else np.float32)
    norms, errors = np.zeros((2, len(vectors)))
    if dtype == "bf16":
        _round(vectors, values, norms, errors)
    else:
        _copy(vectors, values, norms)
    return Rounded(values, norms, errors)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _round(vectors, values, norms, errors):  # type: ignore[no-untyped-def] # compiled
    for row in range(len(vectors)):
        square, lost = np.float32(0), np.float32(0)
        for i in range(vectors.shape[1]):
            number = np.float32(vectors[row, i])
            bits = (np.int64(number.view(np.int32)) + 0x8000) >> 16
            values[row, i] = np.uint16(bits)
            change = number - np.int32(bits << 16).view(np.float32)
            square += number * number
            lost += change * change
        norms[row], errors[row] = np.sqrt(square), np.sqrt(lost)


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _copy(vectors, values, norms):  # type: ignore[no-untyped-def] # compiled
    for row in range(len(vectors)):
        square = np.float32(0)
        for i in range(vectors.shape[1]):
            values[row, i] = vectors[row, i]
            square += vectors[row, i] * vectors[row, i]
        norms[row] = np.sqrt(square)


def error_bounds(queries: Rounded, documents: Rounded) -> np.ndarray:
    """Return by how much at most any float32 inner product of each query with any of the documents
    is off (n,) float64.

    |q.d - q'.d'| <= |q| |d - d'| + |q - q'| |d'|; a sum of n products in float32, in any order, is
    off by n 2^-24 |q'| |d'| at most. That is taken twice, for units that cut instead of rounding,
    and a few roundings more for what is done with the score.
    """
    norm, error = documents.norms.max(), documents.errors.max()
    products = (queries.norms + queries.errors) * (norm + error)
    sums = (documents.values.shape[1] + 16) * 2.0**-23 * products
    off = queries.norms * error + queries.errors * (norm + error) + sums
    return np.nan_to_num(1.001 * off + TINY * (1 + queries.norms) * (1 + norm), nan=np.inf)
