"""Random numbers that depend on a seed and ids alone."""

import hashlib

import numpy as np


def generator(seed: int, *ids: str) -> np.random.Generator:
    """Return random numbers that depend on a seed and ids alone, never on the shard or the
    worker.
    """
    entropy = int.from_bytes(
        hashlib.blake2b(" ".join((str(seed), *ids)).encode(), digest_size=16).digest()
    )
    return np.random.Generator(np.random.Philox(entropy))
