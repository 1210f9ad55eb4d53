"""Random numbers that depend on a seed and ids alone, never on the shard or the worker."""

import hashlib

import numpy as np


def hash_of(seed: int, *ids: str) -> int:
    """Return 128 bits that stand for a seed and ids."""
    text = " ".join((str(seed), *ids)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())


def generator(seed: int, *ids: str) -> np.random.Generator:
    """Return a generator of random numbers.

    >>> int(generator(0, "q1").integers(100)), int(generator(0, "q1").integers(100))
    (3, 3)
    """
    return np.random.Generator(np.random.Philox(hash_of(seed, *ids)))


def uniform(seed: int, *ids: str) -> float:
    """Return a number in [0, 1): drawing by the lowest of these, or by those below a share, is a
    fair draw that adding other ids does not change.

    >>> round(uniform(0, "q1"), 4), round(uniform(1, "q1"), 4)
    (0.9116, 0.0849)
    """
    return hash_of(seed, *ids) / 2**128
