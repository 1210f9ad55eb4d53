"""Pairs of a set -> the retrieval data of NeMo Automodel, "corpus and JSON": train.json, and the
documents that it names in corpus/.

As read by `load_datasets` and `TextQADataset` of NVIDIA-NeMo/Automodel,
nemo_automodel/components/datasets/llm/retrieval_dataset.py, lines 46-64, 134-185 and 254-340 at
commit 012933fe2c316dd5e1e5fd7a39b8dc5efcb9966b. It opens train.json without naming an encoding, so
it is ASCII; it takes no two folders of one corpus_id.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from miner.corpus import Documents
from miner.files import write_json
from miner.store import Run
from scoring.pairs import found_rows, read_pairs, write_parts

CORPUS = "corpus"  # a document that several query shards name stands in each; the reader takes one


def named_documents(run: Run, key: str, pairs: pa.Table) -> pa.Table:
    """Return id and text, title first, of the documents that a shard of pairs names."""
    documents, doc_ids = Documents(run, key), sorted(pc.unique(pairs["doc_id"]).to_pylist())
    texts = documents.texts(found_rows(documents, doc_ids))
    return pa.table({"id": pa.array(doc_ids), "text": pa.array(texts, pa.large_string())})


def write_nemo(
    run: Run, folder: Path, keys: Sequence[str], corpus_id: str, prompt: str | None
) -> None:
    """Write what lies beside the documents.

    Args:
        run, folder, keys: where the pairs are. corpus_id: of these documents and no others.
        prompt: the instruction of queries.
    """
    about = {"class": "TextQADataset", "corpus_id": corpus_id}
    about |= {"query_instruction": prompt or "", "passage_instruction": ""}
    write_json(folder / CORPUS / "merlin_metadata.json", about)
    first = json.dumps({"corpus": [{"path": CORPUS}]}).removesuffix("}") + ', "data": [\n'
    write_parts(folder / "train.json", _items(run, folder, keys, corpus_id), first)


def _items(run: Run, folder: Path, keys: Sequence[str], corpus_id: str) -> Iterator[str]:
    between = ""
    for key in keys:
        queries = run.read(run.QUERIES, key)
        asked = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
        pairs = read_pairs(folder, key).to_pylist()
        for query_id, group in groupby(pairs, lambda row: row["query_id"]):
            item: dict[str, Any] = {"question_id": query_id, "question": asked[query_id]}
            item |= {"corpus_id": corpus_id, "pos_doc": [], "neg_doc": []}
            for row in group:
                item["pos_doc" if row["rank"] is None else "neg_doc"].append({"id": row["doc_id"]})
            yield between + json.dumps(item)
            between = ",\n"
    yield "\n]}\n"
