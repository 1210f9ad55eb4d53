"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the hub
SHARED = Path(__file__).parents[2] / "shared" / "data"
WORDS = [
    *"abcdefghijklmnopqrstuvwxyz:.,",
    *[
        "copper",
        "bees",
        "glass",
        "tides",
        "moon",
        "lamps",
        "metal",
        "current",
        "dance",
        "honey",
        "query",
        "passage",
    ],
]


def make_encoder(
    folder: Path, seed: int, width: int = 32, prompts: dict[str, str] | None = None
) -> Path:
    """Save a tiny random sentence-transformers model: the real loading code, no download."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    bare = folder / "bare"
    bare.mkdir(parents=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (bare / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(bare / "vocab.txt")).save_pretrained(bare)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=width,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=32)
    model = SentenceTransformer(
        modules=[transformer, Pooling(width)], prompts=prompts, device="cpu"
    )
    model.save(str(folder / "model"))
    return folder / "model"


def make_reranker(
    folder: Path, seed: int, labels: int = 1, activation: str | None = None, bare: bool = False
) -> Path:
    """Save a tiny random cross-encoder that reads 32 tokens; `bare` leaves the head out."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=labels,
        initializer_range=0.5,
        max_position_embeddings=64,
    )
    if activation:
        config.sentence_transformers = {"activation_fn": activation}
    (BertModel if bare else BertForSequenceClassification)(config).save_pretrained(folder)
    return folder


@pytest.fixture
def by_hand(monkeypatch):
    """Similarity reads the vectors that lie in 2_index/dense; no model is asked for."""
    from scoring.judge import similarity

    monkeypatch.setattr(similarity, "find_index", lambda run, options: "dense")
    monkeypatch.setattr(similarity, "encoder_fingerprint", lambda options: "by hand")
    monkeypatch.setattr(similarity, "encoder_facts", lambda options: {})
    monkeypatch.setattr(similarity, "target_encoder", lambda run, options: options)


@pytest.fixture(scope="session")
def reranker(tmp_path_factory) -> str:
    return str(make_reranker(tmp_path_factory.mktemp("reranker"), seed=3))


@pytest.fixture(scope="session")
def other_reranker(tmp_path_factory) -> str:
    return str(
        make_reranker(
            tmp_path_factory.mktemp("other-reranker"),
            seed=4,
            activation="torch.nn.modules.linear.Identity",
        )
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> str:
    return str(make_encoder(tmp_path_factory.mktemp("encoder"), seed=1))


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory) -> str:
    return str(make_encoder(tmp_path_factory.mktemp("other"), seed=2))


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(
            "the shared data sets are not beside this checkout"
            f" ({SHARED.parent.name}/{SHARED.name})"
        )
    return SHARED


@pytest.fixture
def short_waits(monkeypatch):
    """Let requests to a server be repeated at once, and forget servers of other tests."""
    from miner.llm import server as llm_server
    from miner.llm.client import _LOADED, _served

    monkeypatch.setattr(llm_server, "FIRST_WAIT", 0.01)
    _LOADED.clear()
    _served.cache_clear()
