"""The scripts of examples/, on Python's own standard library as a BEIR folder."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from miner.models.hub import default_encoder
from quarry import Run

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """A BEIR folder whose test queries are its training queries."""
    home = tmp_path_factory.mktemp("beir")
    run = Run(home / "run")
    run.ingest("stdlib", sample=80)
    run.index("bm25")
    run.mine("bm25", k=5)
    run.select("s", sources=["bm25"])
    run.export("s", format="beir", out=home / "data")
    shutil.copy(home / "data/qrels/train.tsv", home / "data/qrels/test.tsv")
    return home / "data"


def test_an_embedding_model_learns_in_two_rounds(beir, tmp_path, capsys):
    given = [beir, "--out", tmp_path, "--rounds", 2, "--max-length", 48, "--learning-rate", 1e-4]
    example("finetune_embedding")([*map(str, given), "--batch-size", "16", "--epochs", "2"])
    said = capsys.readouterr().out
    quality = [float(line.rsplit(" ", 1)[1]) for line in said.splitlines() if "nDCG@10" in line]
    assert len(quality) == 3 and quality[-1] > quality[0]
    assert said.count("do not shuffle") == 2 and "are those of the last round" in said
    assert (tmp_path / "model-2/model.safetensors").exists()


def test_a_corpus_without_queries_is_enough(beir, tmp_path, capsys):
    corpus = tmp_path / "corpus.jsonl"
    rows = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    corpus.write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows))
    given = [corpus, "--out", tmp_path / "out", "--max-length", 48, "--steps", 2]
    example("finetune_embedding")([*map(str, given), "--batch-size", "8"])
    said = capsys.readouterr().out
    assert "rows;" in said and "nDCG" not in said
    assert (tmp_path / "out/model-1/model.safetensors").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_reranker_is_trained_on_what_its_retriever_finds(beir, tmp_path, capsys, own):
    given = [beir, "--out", tmp_path, "--model", default_encoder(), "--steps", 2]
    if own:
        given += ["--run-file", f"mine={beir / 'negatives.tsv'}"]
    example("finetune_reranker")([*map(str, given), "--max-length", "64"])
    assert "negatives; left out:" in capsys.readouterr().out
    assert (tmp_path / "run/3_candidates" / ("mine" if own else "bm25")).is_dir()
    assert (tmp_path / "model/model.safetensors").exists()
