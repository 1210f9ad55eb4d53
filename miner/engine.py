"""Map a task over shards: in this process or in worker processes, with the same bytes as the
result.

A task is a picklable callable of one shard key. It writes its shard itself, under a temporary name
that it then renames, so a task that is retried or done twice does no harm. `map_shards` is the only
place that knows where tasks run.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

Advance = Callable[..., None]  # by one shard, or by (rows, characters) of what is read
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def silent(label: str, total: int) -> AbstractContextManager[Advance]:
    """Show no progress."""
    return nullcontext(lambda *_: None)


@dataclass(frozen=True)
class How:
    """How a stage is carried out; nothing here changes a byte of its result.

    Attributes:
        force: make the stage afresh even if it was made with other options.
        workers: processes that share the shards; 1 stays in this process.
        progress: opens a progress display for `total` shards and gives the function that advances
            it; with a total of 0, for rows that are read, nobody knows how many.
    """

    force: bool = False
    workers: int = 1
    progress: Callable[[str, int], AbstractContextManager[Advance]] = silent


def map_shards(task: Callable[[str], None], keys: Sequence[str], workers: int = 1) -> Iterator[str]:
    """Run `task` on every key and yield each key when it is done, in any order.

    Args:
        task: a picklable callable; what it returns is dropped.
        keys: the shards.
        workers: processes; with 1, or one key, all runs in this process.

    Raises:
        Exception: the first failure of any task; tasks that have not begun are given up. A worker
            that dies raises BrokenProcessPool.
    """
    workers = min(workers, len(keys))
    if workers <= 1:
        for key in keys:
            task(key)
            yield key
        return
    with (
        _threads_shared_by(workers),
        ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
        ) as pool,
    ):
        futures = {pool.submit(task, key): key for key in keys}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _threads_shared_by(workers: int) -> Iterator[None]:
    """Give each worker its part of the cores: spawned processes read these variables when they
    import their libraries.
    """
    share = str(max(1, (os.cpu_count() or 1) // workers))
    missing = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, share))
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _end_with_parent() -> None:
    """End this worker when its parent is gone, even by kill -9: an orphan must not go on writing
    into the run folder.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
