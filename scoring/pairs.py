"""The distinct (query, document) pairs of all sources in one query shard: what a judge judges."""

import numpy as np
import pyarrow as pa

from miner.corpus import Corpus
from miner.engine import How
from miner.options import MineRandom
from miner.random_documents import mine_random
from miner.store import Run


def judged_sources(run: Run, how: How) -> tuple[list[str], dict[str, str]]:
    """Return what a judge judges: the names of all finished sources, and the judge's inputs. `random` is drawn if it is not there.

    Raises:
        UserError: there are no tables, or a source is older than they are.
    """
    inputs = {"1_tables": run.tables().fingerprint}
    if run.find("3_candidates/random") is None:
        mine_random(run, MineRandom(), how)
    names = run.names("3_candidates")
    return names, inputs | {f"3_candidates/{name}": run.need_current(f"3_candidates/{name}", f"mine {name}").fingerprint for name in names}


def candidate_pairs(run: Run, corpus: Corpus, query_ids: list[str], sources: list[str], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of a shard in order of query, then document.

    Returns:
        places in `query_ids` and rows of the corpus, both (p,) int64.

    Raises:
        KeyError, ValueError: a candidate names a query of another shard, or a document that is not in the corpus: a source wrote it wrong.
    """
    if not sources:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    table = pa.concat_tables(run.read(f"3_candidates/{source}", key).select(["query_id", "doc_id"]) for source in sources)
    place = {query_id: number for number, query_id in enumerate(query_ids)}
    query = np.array([place[query_id] for query_id in table["query_id"].to_pylist()], np.int64)
    rows = corpus.rows(table["doc_id"].to_pylist())
    if (rows < 0).any():
        raise ValueError(
            f"candidates of shard {key} name documents that are not in the corpus, such as {table['doc_id'][int(np.argmin(rows))]}"
        )
    pairs = np.unique(query * len(corpus) + rows)
    return pairs // len(corpus), pairs % len(corpus)
