"""Glosses of other senses of a word."""

import json

import pytest

from miner.corpus import Corpus
from miner.engine import How
from miner.errors import UserError
from miner.ingest.ingest import ingest
from miner.ingest.pairs import IngestPairs
from miner.search.gloss import MineGloss, mine_gloss
from miner.store import Run

GLOSSES = [
    ("bank (river)", "bank: sloping land beside water"),
    ("bank (money)", "bank: an institution that lends"),
    ("Bank", "bank: a row of things"),
    ("slate", "slate: a rock that splits"),
    ("slate, list", "Slate: a list of candidates"),
    ("moon", "moon: a natural satellite"),
    ("a question", "an answer without a word before a colon"),
]


def run_of(path, glosses, shard=100):
    file = path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"query": q, "positive": p}) for q, p in glosses))
    run = Run(path / "run")
    ingest(run, IngestPairs(file=str(file), shard_queries=shard, shard_documents=2), How())
    return run


def found(run, name="gloss"):
    documents, out = Corpus(run), {}
    for key in run.query_shards():
        asked = {row["query_id"]: row["text"] for row in run.read(run.QUERIES, key).to_pylist()}
        for row in run.read(f"3_candidates/{name}", key).to_pylist():
            text = documents.texts(documents.rows([row["doc_id"]]))[0]
            out.setdefault(asked[row["query_id"]], set()).add(text)
    return out


@pytest.mark.parametrize("shard", [2, 100])
def test_other_senses_of_the_same_word_are_found(tmp_path, shard):
    run = run_of(tmp_path, GLOSSES, shard)
    mine_gloss(run, MineGloss(), How(workers=2))
    senses = found(run)
    banks = {gloss for _, gloss in GLOSSES[:3]}
    assert all(senses[query] == banks for query, _ in GLOSSES[:3])  # its own positive too
    assert senses["slate"] == senses["slate, list"] == {gloss for _, gloss in GLOSSES[3:5]}
    assert senses.get("moon") == {"moon: a natural satellite"} and "a question" not in senses


def test_a_draw_keeps_k_that_are_no_positives(tmp_path):
    glosses = [("set", f"set: sense number {n}") for n in range(1)]
    glosses += [(f"set ({n})", f"set: sense number {n}") for n in range(1, 30)]
    run = run_of(tmp_path, glosses)
    mine_gloss(run, MineGloss(k=4), How())
    mine_gloss(run, MineGloss(name="again", k=4, seed=1), How())
    for query, senses in found(run).items():
        own = dict(glosses)[query]
        assert len(senses - {own}) == 4
    assert found(run) != found(run, "again")


def test_a_corpus_without_headwords_is_refused(tmp_path):
    run = run_of(tmp_path, GLOSSES[6:])
    with pytest.raises(UserError, match="has a headword: expected a title"):
        mine_gloss(run, MineGloss(), How())
