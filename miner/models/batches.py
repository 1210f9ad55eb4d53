"""Batches of tokens, which encoder and reranker share: the longest come first, and are halved where
memory runs out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
# texts given to the tokenizer at a time: what it makes of them is far larger than the token ids
# that are kept
AT_ONCE = 64
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def smallest(numbers: np.ndarray) -> np.ndarray:
    """Return whole numbers in the smallest type that holds them: token ids mostly take 2 bytes,
    other inputs 1.
    """
    kind = np.result_type(
        *(np.min_scalar_type(bound) for bound in (numbers.min(initial=0), numbers.max(initial=0)))
    )
    return numbers.astype(kind)


def same_features(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two batches are the same for a model."""
    import torch

    def same(a: Any, b: Any) -> bool:
        tensors = isinstance(a, torch.Tensor), isinstance(b, torch.Tensor)
        return (
            a.dtype == b.dtype and torch.equal(a, b)
            if all(tensors)
            else not any(tensors) and a == b
        )

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def one_behind(batches: Iterator[T]) -> Iterator[T]:
    """Yield each batch when the next one has begun: a GPU then works on that while this one is
    fetched.
    """
    waiting = next(batches)
    for batch in batches:
        yield waiting
        waiting = batch
    yield waiting


def attempt(work: Callable[..., T], *arguments: Any) -> T | None:
    """Return what `work` gives, or None if memory ran out; then what it held is free again."""
    try:
        return work(*arguments)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(
            sign in str(error) for sign in OUT_OF_MEMORY
        ):
            raise
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
