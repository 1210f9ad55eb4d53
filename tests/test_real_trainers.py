"""Exports in the hands of the trainers themselves: `make test-trainers` installs them. Each one's
own loader reads what was written; where it runs here, its own trainer takes steps, and the loss
falls.
"""

import json

import pytest

from miner.engine import How
from miner.ingest.ingest import ingest
from miner.ingest.stdlib import IngestStdlib
from miner.models.hub import default_encoder, locate
from miner.search.bm25 import MineBm25, index_bm25, mine_bm25
from miner.search.dense_index import IndexDense, index_dense
from miner.search.tokens import IndexBm25
from miner.store import Run
from scoring.export import export
from scoring.export_options import Export
from scoring.judge.similarity import JudgeSimilarity, judge_similarity
from scoring.recipe import Select
from scoring.select import select

pytestmark = pytest.mark.trainers
STEPS = 15


@pytest.fixture(scope="module")
def model():
    return str(locate(default_encoder()))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    how, run = How(), Run(tmp_path_factory.mktemp("real") / "run")
    ingest(run, IngestStdlib(sample=60, shard_queries=20), how)
    index_bm25(run, IndexBm25(), how)
    mine_bm25(run, MineBm25(k=8), how)
    index_dense(run, IndexDense(max_length=64), how)
    judge_similarity(run, JudgeSimilarity(max_length=64), how)
    for name, most in (("s", None), ("one", 1)):
        recipe = {"sources": ("bm25",), "percent_margin": 0.95, "negatives": most}
        select(run, Select(name=name, **recipe), how)
    return run


def exported(run, form, name="s", **options):
    manifest = export(run, Export(name=name, format=form, card=True, **options), How(force=True))
    assert manifest.rows["rows"] > 30
    return run.path / f"8_export/{name}.{form}"


def fell(losses):
    third = len(losses) // 3
    assert third >= 3 and sum(losses[-third:]) < sum(losses[:third]), losses


def arguments(kind, folder, **more):
    return kind(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=STEPS,
        learning_rate=5e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        seed=1,
        **more,
    )


def learns(trainer):
    """The loss over all rows is lower after training."""
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.95 * before


def losses_of(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("distil", [False, True])
def test_flag_embedding_trains_an_embedder(run, model, tmp_path, distil):
    base = pytest.importorskip("FlagEmbedding.finetune.embedder.encoder_only.base")
    folder = exported(run, "flag-embedding", prompt="find: ")
    data = base.EncoderOnlyEmbedderDataArguments(
        train_data=[str(file) for file in sorted(folder.glob("*.jsonl"))],
        cache_path=str(tmp_path / "cache"),
        train_group_size=3,
        query_max_len=32,
        passage_max_len=64,
        knowledge_distillation=distil,
        query_instruction_for_retrieval="unused, as rows have their own: ",
        query_instruction_format="{}{}",
    )
    runner = base.EncoderOnlyEmbedderRunner(
        model_args=base.EncoderOnlyEmbedderModelArguments(model_name_or_path=model),
        data_args=data,
        training_args=arguments(
            base.EncoderOnlyEmbedderTrainingArguments,
            tmp_path / "out",
            temperature=0.05,
            sentence_pooling_method="mean",
            remove_unused_columns=False,
        ),
    )
    query, passages, scores = runner.train_dataset[0]
    assert query.startswith("find: ") and len(passages) == 3
    assert (scores is not None) == distil
    runner.run()
    fell(losses_of(runner.trainer))


def test_pylate_reads_what_it_distils_from(run):
    """Its model does not load beside sentence-transformers 6, so it takes no step here."""
    processing = pytest.importorskip("pylate.utils.processing")
    from datasets import load_dataset

    folder = str(exported(run, "pylate", negatives=3))
    train, queries, documents = (
        load_dataset(folder, name, split="train") for name in ("train", "queries", "documents")
    )
    told = list(train)
    read = processing.KDProcessing(queries=queries, documents=documents, n_ways=4)
    train.set_transform(read.transform)
    texts = dict(zip(documents["document_id"], documents["text"], strict=True))
    asked = dict(zip(queries["query_id"], queries["text"], strict=True))
    for row, found in zip(told, train, strict=True):
        assert found["query"] == asked[row["query_id"]]
        assert found["documents"] == [texts[one] for one in row["document_ids"][:4]]
        assert found["scores"] == pytest.approx(row["scores"][:4])


def test_tevatron_reads_its_groups(run, model):
    preprocessor = pytest.importorskip("tevatron.datasets.preprocessor")
    from datasets import load_dataset
    from transformers import AutoTokenizer

    folder = exported(run, "tevatron")
    tokenizer = AutoTokenizer.from_pretrained(model)
    train = load_dataset(str(folder), split="train")
    made = train.map(
        preprocessor.TrainPreProcessor(tokenizer, 32, 64), remove_columns=train.column_names
    )
    rows = [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(made) == len(rows)
    for found, row in zip(made, rows, strict=True):
        assert len(found["positives"]) == len(row["positive_passages"])
        assert len(found["negatives"]) == len(row["negative_passages"]) > 0
        told = tokenizer.decode(found["query"])
        assert (
            told.split()[:2]
            == tokenizer.decode(tokenizer.encode(row["query"], add_special_tokens=False)).split()[
                :2
            ]
        )


def as_written(rows, batch_size, drop_last, **_):
    """The batches of an export with --batch, as docs/exports.md has it."""
    from torch.utils.data import BatchSampler, SequentialSampler

    return BatchSampler(SequentialSampler(rows), batch_size, drop_last)


@pytest.mark.parametrize(
    ("form", "options", "loss"),
    [
        ("triplet", {"name": "one"}, "MultipleNegativesRankingLoss"),
        ("n-tuple", {"negatives": 3}, "MultipleNegativesRankingLoss"),
        ("n-tuple", {"negatives": 3}, "CachedMultipleNegativesRankingLoss"),
        ("triplet", {}, "TripletLoss"),
        ("labeled-pair", {}, "ContrastiveLoss"),
        ("n-tuple", {"negatives": 3, "batch": 8}, "MultipleNegativesRankingLoss"),
        ("triplet", {"scores": True}, "MarginMSELoss"),
        ("n-tuple", {"negatives": 3, "scores": True}, "MarginMSELoss"),
        ("n-tuple", {"negatives": 3, "scores": True}, "DistillKLDivLoss"),
    ],
)
def test_sentence_transformers_train_an_encoder(run, model, tmp_path, form, options, loss):
    from datasets import load_dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )

    encoder = SentenceTransformer(model, device="cpu")
    encoder.max_seq_length = 64
    if "scores" in options:  # they are this model's own, so the student has half of its layers
        layers = encoder[0].auto_model.encoder
        layers.layer = layers.layer[:3]
    train = load_dataset(str(exported(run, form, **options)), split="train")
    # else rows of one query would be each other's negatives
    sampler = as_written if "batch" in options else "no_duplicates"
    trainer = SentenceTransformerTrainer(
        model=encoder,
        args=arguments(
            SentenceTransformerTrainingArguments, tmp_path / "out", batch_sampler=sampler
        ),
        train_dataset=train,
        eval_dataset=train,
        loss=getattr(losses, loss)(encoder),
    )
    learns(trainer)


@pytest.mark.parametrize(
    ("form", "loss"), [("labeled-pair", "BinaryCrossEntropyLoss"), ("labeled-list", "LambdaLoss")]
)
def test_sentence_transformers_train_a_reranker(run, model, tmp_path, form, loss):
    from datasets import load_dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    reranker = CrossEncoder(model, num_labels=1, max_length=96, device="cpu")
    train = load_dataset(str(exported(run, form)), split="train")
    trainer = CrossEncoderTrainer(
        model=reranker,
        args=arguments(CrossEncoderTrainingArguments, tmp_path / "out"),
        train_dataset=train,
        eval_dataset=train,
        loss=getattr(losses, loss)(reranker),
    )
    learns(trainer)
