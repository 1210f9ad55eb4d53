"""vectors -> FAISS indexes of any factory; queries + indexes -> documents, whose scores are exact
though some may be missed.

Document shards are gathered into groups, one FAISS index a group: an index of `group_documents`
vectors must fit in memory, all of them together need not. An index proposes,
`miner.search.topk.Top` scores and orders, so the scores are those of exact search.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from miner.engine import How
from miner.errors import UserError, log
from miner.search.faiss_scan import first_line
from miner.search.rounding import Block
from miner.search.topk import Top
from miner.seeds import generator
from miner.stages import Shard, Stage, run_stage
from miner.store import Manifest, Run, shard_keys

TRAIN = 256  # vectors a centroid that FAISS trains with at most
CODES = 256  # centroids of a product quantizer's part
SEED = 0  # of the vectors that an index is trained with


@dataclass(frozen=True)
class Factory:
    """An approximate index: what is built, and how it is searched.

    Attributes:
        index: the dense index whose vectors it holds, such as "2_index/dense".
        factory: FAISS's index_factory string.
        parameters: FAISS's search parameters, such as "nprobe=32"; "" leaves FAISS's own.
        group_documents: documents in one FAISS index.
    """

    index: str
    factory: str
    parameters: str
    group_documents: int

    @property
    def folder(self) -> str:
        """Return the stage's folder."""
        return f"{self.index}.{re.sub(r'[^A-Za-z0-9._+-]', '_', self.factory)}"

    def groups(self, blocks: Sequence[Block], size: int) -> list[list[Block]]:
        """Return blocks of `size` documents in as few groups as may be, of about the same size:
        a small one could not be trained.
        """
        count = -(-len(blocks) // max(1, self.group_documents // size))
        edges = np.linspace(0, len(blocks), count + 1).astype(int)
        return [list(blocks[start:stop]) for start, stop in pairwise(edges)]


def build_index(
    run: Run, what: Factory, fingerprint: str, groups: Sequence[Sequence[Block]], how: How
) -> Manifest:
    """Build FAISS indexes: 2_index/<index> -> 2_index/<index>.<factory>, one shard a group.

    Args:
        run: the run folder.
        what: what to build.
        fingerprint: of the dense index.
        groups: the vectors.
        how: even with force, an index that is there and was made from the same vectors is taken as
            it is.

    Raises:
        UserError: FAISS does not know the factory or the parameters, or a group has too few vectors
            to train it.
    """
    _empty_index(what, groups[0][0][1]().shape[1])  # before anything is written
    options = {"factory": what.factory, "group_documents": what.group_documents}
    stage = Stage(
        what.folder, "bytes", options, {what.index: fingerprint}, made_by="mine dense --factory"
    )
    made = run.find(what.folder)
    how = replace(how, force=how.force and (made is None or made.fingerprint != stage.fingerprint))
    return run_stage(
        run,
        stage,
        lambda: partial(_build_group, what, groups),
        shard_keys(len(groups)),
        how,
        lambda: {"kind": "faiss"},
    )


def find(
    run: Run,
    what: Factory,
    groups: Sequence[Sequence[Block]],
    device: str,
    queries: np.ndarray,
    depth: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return about the `depth` best documents of each query, as `miner.search.flat.search` does;
    their scores and order are exact.

    Args:
        run, what, groups: as for `build`, which must have run.
        device: "cpu", or "cuda", which means all GPUs there are.
        queries: (n, d) float32.
        depth: documents per query.
    """
    top = Top(queries, depth)
    for key, group in zip(shard_keys(len(groups)), groups, strict=True):
        if len(queries) and depth:
            _offer(
                top,
                _search(
                    run.path / what.folder / f"{key}.npy",
                    what.parameters,
                    device,
                    top.queries,
                    depth,
                ),
                group,
            )
    return (
        top.result()
        if depth
        else (np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    )


def _offer(top: Top, places: np.ndarray, group: Sequence[Block]) -> None:
    """Offer what an index of a group proposes, block by block. Padding (-1) lies in no block."""
    sure = np.full(len(places), np.inf)  # no score of the index's own is believed
    start = group[0][0]
    for number, (first, read) in enumerate(group):
        stop = group[number + 1][0] if number + 1 < len(group) else np.iinfo(np.int64).max
        here = (places >= first - start) & (places < stop - start)
        chosen = places[here] + start - first
        top.offer_some(
            (here.sum(axis=1), chosen, np.zeros(len(chosen), np.float32)), sure, read(), first
        )


def _empty_index(what: Factory, width: int) -> Any:
    import faiss

    try:
        # FAISS's own default is L2
        index = faiss.index_factory(width, what.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"--factory {what.factory!r} is nothing that FAISS can build for inner products of"
            f" {width} dimensions ({first_line(error)}); take one such as IVF1024,Flat or HNSW32"
        ) from error
    _set_parameters(index, what.parameters)
    return index


def _set_parameters(index: Any, parameters: str) -> None:
    import faiss

    space: Any = faiss.ParameterSpace()  # FAISS's own type hints have the parameters for a number
    try:
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise UserError(
            f"--parameters {parameters!r} does not fit the factory ({first_line(error)}); take some"
            " such as nprobe=32 or efSearch=128"
        ) from error


def _build_group(what: Factory, groups: Sequence[Sequence[Block]], key: str) -> Shard:
    import faiss

    group = groups[int(key)]
    blocks = [read() for _, read in group]
    index = _empty_index(what, blocks[0].shape[1])
    with _reproducible(what.factory):
        if not index.is_trained:
            try:
                index.train(_training_sample(blocks, _training_size(index), int(key)))
            except RuntimeError as error:
                raise UserError(
                    f"--factory {what.factory!r} cannot be trained with the {sum(map(len, blocks))}"
                    f" documents of a group ({first_line(error)}); take a smaller one, or leave"
                    " --factory out: exact search needs no training"
                ) from error
        for block in blocks:
            index.add(np.ascontiguousarray(block))
    return Shard({key: faiss.serialize_index(index)})


def _training_size(index: Any) -> int:
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    return TRAIN * max(CODES, inverted.nlist if inverted is not None else 0)


def _training_sample(blocks: Sequence[np.ndarray], size: int, group: int) -> np.ndarray:
    """Return `size` vectors (all of them if there are fewer) drawn from blocks, in order."""
    ends = np.cumsum([len(block) for block in blocks])
    random = generator(SEED, str(group))
    rows = np.sort(random.choice(ends[-1], min(size, ends[-1]), replace=False))
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    starts = [0, *ends[:-1]]
    return np.vstack(
        [block[part - start] for block, part, start in zip(blocks, parts, starts, strict=True)]
    )


@contextmanager
def _reproducible(factory: str) -> Iterator[None]:
    """Have graphs built by one thread: several threads build another each time."""
    import faiss

    threads = faiss.omp_get_max_threads()
    graph = any(word in factory for word in ("HNSW", "NSG", "NNDescent"))
    faiss.omp_set_num_threads(1 if graph else threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


# indexes in memory: they serve one shard of queries after the other
_opened: dict[tuple[Path, str, str], Any] = {}


def forget_indexes() -> None:
    """Let go of all indexes."""
    _opened.clear()


def _search(
    file: Path, parameters: str, device: str, queries: np.ndarray, depth: int
) -> np.ndarray:
    """Return the places in a group of the documents that its index proposes (n, depth), -1 where
    there are fewer.
    """
    if device != "cpu":
        try:
            return np.asarray(_open_index(file, parameters, device).search(queries, depth)[1])
        except RuntimeError as error:
            log.warning("FAISS on the GPU failed (%s): searching on the CPU", first_line(error))
    return np.asarray(_open_index(file, parameters, "cpu").search(queries, depth)[1])


def _open_index(file: Path, parameters: str, device: str) -> Any:
    import faiss

    key = (file, parameters, device)
    if key not in _opened:
        if psutil.virtual_memory().available < 3 * file.stat().st_size:
            forget_indexes()
        index = faiss.deserialize_index(np.load(file, mmap_mode="r"))
        _set_parameters(index, parameters)
        _opened[key] = index if device == "cpu" else _on_gpus(index)
    return _opened[key]


def _on_gpus(index: Any) -> Any:
    """Return the index spread over all GPUs, each with a part of the vectors."""
    import faiss

    options = faiss.GpuMultipleClonerOptions()
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, options)
