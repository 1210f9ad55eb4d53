"""Texts in order of arrival -> shards in order of doc_id: an external sort whose memory is one
shard.

A sort that carries its texts along needs memory for them. Here only ids are sorted, elsewhere; the
texts are read once from front to back, and each goes to the file of the shard it belongs to.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from miner.errors import UserError
from miner.tables import TEXT

ARRIVED = pa.schema(
    [
        ("seq", pa.int64()),
        ("doc_id", TEXT),
        ("title", pa.large_string()),
        ("text", pa.large_string()),
    ]
)
PLACED = pa.schema(
    [("row", pa.int64()), *((field.name, field.type) for field in list(ARRIVED)[1:])]
)
# files that are open at a time; more shards than that take another pass over the texts
FAN_OUT = 256
Places: TypeAlias = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def shards_in_order(arrived: Path, places: Places, size: int, shards: int) -> Iterator[pa.Table]:
    """Yield the shards of documents, each in order.

    Args:
        arrived: Arrow stream of ARRIVED, ascending in seq; scratch files are made beside it.
        places: for a range of seq, both ends included: the seqs that are kept, ascending, and the
            row of each in the order of doc_id.
        size: documents in a shard.
        shards: how many there are.

    Raises:
        UserError: a shard holds more text than an Arrow file of strings can.
    """
    for first in range(0, shards, FAN_OUT):
        files = {
            shard: arrived.with_name(f"{shard}.arrow")
            for shard in range(first, min(first + FAN_OUT, shards))
        }
        _distribute(arrived, places, size, files)
        for file in files.values():
            yield _sorted(file)
            file.unlink()


def _distribute(arrived: Path, places: Places, size: int, files: dict[int, Path]) -> None:
    with ExitStack() as stack:
        writers = {
            shard: stack.enter_context(pa.ipc.new_stream(str(file), PLACED))
            for shard, file in files.items()
        }
        for batch in stack.enter_context(pa.ipc.open_stream(pa.OSFile(str(arrived)))):
            seqs = batch.column("seq").to_numpy()
            kept, rows = places(int(seqs[0]), int(seqs[-1]))
            position, shard = np.searchsorted(seqs, kept), rows // size
            for number in np.intersect1d(shard, list(files)):
                here = np.flatnonzero(shard == number)
                texts = batch.take(pa.array(position[here])).columns[1:]
                writers[int(number)].write_batch(
                    pa.record_batch([pa.array(rows[here]), *texts], schema=PLACED)
                )


def _sorted(file: Path) -> pa.Table:
    table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    if max(table[name].nbytes for name in ("title", "text")) >= 2**31:
        raise UserError(
            f"{len(table)} documents hold more than 2 GiB of text; lower --shard-documents so that"
            " a shard holds less"
        )
    return table.take(pa.array(np.argsort(table["row"].to_numpy()))).drop_columns("row")
