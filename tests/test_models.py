import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import WORDS, make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.models import hub as models
from miner.models.batches import attempt
from miner.models.encoder import TextEncoder, encoder_facts, encoder_fingerprint, load_encoder
from miner.models.hub import Encoder, gpu_count, locate, own_device, resolve, weights_fingerprint
from miner.models.reading import PROBES, find_reader

LONG = " ".join(WORDS[29:])
UNEVEN = [
    "bees",
    "",
    LONG * 9,
    "copper glass",
    LONG,
    "a b c d e f g h i",
    "moon " * 31,
    "moon",
    "x" * 500,
    "bees",
]
TEXTS = st.lists(
    st.lists(st.sampled_from([*WORDS, "unknown", "copperbees"]), max_size=40).map(" ".join),
    min_size=1,
    max_size=12,
)
OWN = {"query": None, "document": None}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A sentence-transformers model that any test may bend, and must leave as it was."""
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "query : ", "document": "passage : "}
    folder = make_encoder(tmp_path_factory.mktemp("prompted"), seed=5, prompts=prompts)
    return SentenceTransformer(str(folder), device="cpu").eval()


def theirs(model, texts, role, prompt=None):
    encode = model.encode_query if role == "query" else model.encode_document
    return encode(texts, prompt=prompt, normalize_embeddings=True)


@contextmanager
def watched(model, break_over=None, error=None):
    """Record (rows, width, real tokens) of each batch; refuse those of more tokens than
    `break_over`.
    """
    seen = []

    def look(_, arguments):
        ids, mask = arguments[0]["input_ids"], arguments[0]["attention_mask"]
        if break_over is not None and ids.numel() > break_over:
            raise error
        seen.append((*ids.shape, int(mask.sum())))

    handle = model.register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("prompt", [None, "", "copper copper copper "])
def test_vectors_are_those_of_sentence_transformers(model, role, prompt):
    found = TextEncoder(model, {"query": prompt, "document": prompt}, 70)(UNEVEN, role)
    assert found.dtype == np.float32 and found.shape == (len(UNEVEN), 32)
    np.testing.assert_allclose(found, theirs(model, UNEVEN, role, prompt), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    other = TextEncoder(model, {"query": "lamps", "document": "lamps"}, 70)(UNEVEN, role)
    assert np.abs(found - other).max() > 1e-3  # the prompt counts


@given(TEXTS, st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_any_texts_in_any_batches(model, texts, budget):
    with watched(model) as seen:
        found = TextEncoder(model, OWN, budget)(texts, "document")
    np.testing.assert_allclose(found, theirs(model, texts, "document"), atol=1e-6)
    assert sum(rows for rows, *_ in seen) == len(texts)
    assert all(rows * width <= budget or rows == 1 for rows, width, _ in seen)
    widths = [width for _, width, _ in seen]
    assert widths == sorted(widths, reverse=True)


def test_a_batch_is_as_large_as_the_budget_lets_it_and_padded_only_to_its_longest(model):
    # 3, 4, 3, 5, 3 tokens with [CLS] and [SEP]
    texts = ["moon", "moon bees", "moon", "moon bees glass", "bees"]
    with watched(model) as seen:
        TextEncoder(model, {"query": "", "document": ""}, 10)(texts, "query")
    assert seen == [(2, 5, 9), (3, 3, 9)]


def test_other_ways_to_read_and_to_pool(model):
    pooling, tokenizer = model[1], model.tokenizer
    before = pooling.pooling_mode, pooling.include_prompt, tokenizer.padding_side
    try:
        for mode, include_prompt, side in (
            ("mean", False, "right"),
            ("mean", False, "left"),
            ("lasttoken", True, "left"),
            ("cls", True, "left"),
            ("max", True, "right"),
            ("weightedmean", True, "left"),
        ):
            pooling.pooling_mode, pooling.include_prompt, tokenizer.padding_side = (
                mode,
                include_prompt,
                side,
            )
            # BERT counts positions from the matrix's edge: padded to the left, a vector depends on
            # the batch
            encode = TextEncoder(model, OWN, 90 if side == "right" else 10**6)
            np.testing.assert_allclose(
                encode(UNEVEN, "query"),
                theirs(model, UNEVEN, "query"),
                atol=1e-6,
                err_msg=f"{mode} {side}",
            )
            assert encode._readers["query"] is not None
    finally:
        pooling.pooling_mode, pooling.include_prompt, tokenizer.padding_side = before


def test_a_model_that_reads_otherwise_is_encoded_by_sentence_transformers(model):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(model.tokenizer.backend_tokenizer, embedding_dim=32)
    alone = SentenceTransformer(modules=[static], device="cpu", prompts={"query": "copper "})
    router = Router.for_query_document(
        query_modules=[static], document_modules=[model[0], model[1]]
    )
    for one in (alone, SentenceTransformer(modules=[router], device="cpu")):
        encode = TextEncoder(one.eval(), OWN, 600)
        for role in ("query", "document"):
            np.testing.assert_allclose(encode(UNEVEN, role), theirs(one, UNEVEN, role), atol=1e-6)
        assert encode._readers["query"] is None


def test_a_reader_that_would_pad_or_cut_otherwise_is_refused(model):
    assert find_reader(model, "query", None) is not None
    model[0].processing_kwargs = {"text": {"pad_to_multiple_of": 16}}
    try:
        assert find_reader(model, "query", None) is None
        np.testing.assert_allclose(
            TextEncoder(model, OWN, 90)(UNEVEN, "query"), theirs(model, UNEVEN, "query"), atol=1e-6
        )
    finally:
        model[0].processing_kwargs = {}
    assert len(model.tokenizer(PROBES[-1][-1])["input_ids"]) > 512


def test_no_texts_and_the_bundled_options(encoder):
    encode = load_encoder(Encoder(encoder=encoder, dtype="fp32"))
    assert encode([], "query").shape == (0, 32)
    assert load_encoder(Encoder(encoder=encoder, dtype="fp32", truncate_dim=5))(
        [], "query"
    ).shape == (0, 5)
    assert encode.batch_tokens == encoder_facts(Encoder(device="cpu", dtype="fp32"))["batch_tokens"]


def test_max_length_is_what_is_read(encoder):
    encode = load_encoder(Encoder(encoder=encoder, dtype="fp32", max_length=4))
    first, second, third = encode(
        ["moon bees glass tides", "moon bees copper", "moon glass"], "document"
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - third).max() > 1e-3


def test_truncated_vectors_are_the_first_dimensions_at_length_one(encoder):
    whole = load_encoder(Encoder(encoder=encoder, dtype="fp32"))(UNEVEN, "document")
    cut = load_encoder(Encoder(encoder=encoder, dtype="fp32", truncate_dim=7))(UNEVEN, "document")
    np.testing.assert_allclose(
        cut, whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True), atol=1e-6
    )
    with pytest.raises(
        UserError, match="--truncate-dim 33, but the encoder's vectors have 32 dimensions"
    ):
        load_encoder(Encoder(encoder=encoder, dtype="fp32", truncate_dim=33))


@pytest.mark.parametrize("kind", ["cuda", "cpu", "python"])
def test_out_of_memory_halves_the_batch_and_goes_on(model, caplog, kind):
    import torch

    error = {
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "cpu": RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
            " bytes. Error code 12"
        ),
        "python": MemoryError(),
    }[kind]
    texts = ["moon bees " * 9, *["moon bees glass"] * 40, "tides"]
    whole = TextEncoder(model, OWN, 500)(texts, "document")
    with watched(model, break_over=150, error=error) as seen:
        found = TextEncoder(model, OWN, 500)(texts, "document")
    np.testing.assert_allclose(found, whole, atol=1e-6)
    # of 22 tokens, 22 and 11 rows are too many; 5 fit, and their 110 tokens are the budget from
    # there on
    assert seen[0][:2] == (5, 22)
    assert max(rows * width for rows, width, _ in seen) == 110
    assert [record.levelname for record in caplog.records if record.name == "quarry"] == [
        "WARNING"
    ] * 2
    assert "--batch-tokens 110" in caplog.records[-1].getMessage()


def test_one_text_that_does_not_fit_is_the_users_to_decide(model, caplog):
    import torch

    with (
        watched(model, break_over=3, error=torch.OutOfMemoryError("CUDA out of memory.")),
        pytest.raises(UserError, match="--max-length"),
    ):
        TextEncoder(model, OWN, 64)(["moon bees", "moon"], "document")


def test_out_of_memory_inside_sentence_transformers(model, caplog):
    sizes = []

    def encode_query(texts, batch_size, **kwargs):
        sizes.append(batch_size)
        if batch_size > 1:
            raise MemoryError
        return model.encode_query(texts, batch_size=batch_size, **kwargs)

    bent = SimpleNamespace(
        **{name: getattr(model, name) for name in ("prompts", "default_prompt_name", "device")},
        encode_query=encode_query,
    )
    encode = TextEncoder(bent, OWN, 256 * 4, _readers={"query": None})
    np.testing.assert_allclose(encode(UNEVEN, "query"), theirs(model, UNEVEN, "query"), atol=1e-6)
    assert sizes == [4, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        attempt(fail)


def test_vectors_that_are_not_finite_are_refused(model):
    handle = model.register_forward_hook(
        lambda _, arguments, out: out | {"sentence_embedding": out["sentence_embedding"] / 0}
    )
    try:
        with pytest.raises(UserError, match=r"not finite under dtype fp16; try --dtype fp32"):
            TextEncoder(model, OWN, 64, dtype="fp16")(["moon"], "document")
    finally:
        handle.remove()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_threads_and_workers_do_not_change_a_bit(tmp_path, monkeypatch, dtype):
    import torch

    options = Encoder(encoder=str(make_encoder(tmp_path, 7, 64)), dtype=dtype, device="cpu")
    before, found = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(encode_many(options))
    finally:
        torch.set_num_threads(before)
    if dtype == "fp32":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.add(pool.submit(encode_many, options).result())
    assert len(found) == 1


def encode_many(options):
    return load_encoder(options)(
        [LONG[:length] for length in range(0, 90, 2)] * 3, "document"
    ).tobytes()


def test_what_decides_vectors_is_in_the_fingerprint_and_what_does_not_is_not(encoder):
    def fingerprint(**options):
        return encoder_fingerprint(
            Encoder(encoder=encoder, **{"dtype": "fp32", "device": "cpu"} | options)
        )

    usual = fingerprint()
    others = [
        fingerprint(**option)
        for option in (
            {"batch_tokens": 100},
            {"truncate_dim": 8},
            {"backend": "onnx"},
            {"max_length": 9},
            {"dtype": "bf16"},
            {"device": "cuda"},
            {"query_prompt": ""},
        )
    ]
    assert len({usual, *others}) == 8
    assert fingerprint(batch_tokens=resolve(Encoder(device="cpu", dtype="fp32"))[2]) == usual
    assert (
        fingerprint(device="cuda:0")
        == fingerprint(device="cuda:1")
        == fingerprint(device="cuda")
        != usual
    )


def test_files_of_a_backend_count_only_for_it(tmp_path, encoder):
    folder = tmp_path / "model"
    shutil.copytree(encoder, folder)

    def all_fingerprints():
        weights_fingerprint.cache_clear()
        return {
            backend: weights_fingerprint(folder, backend)
            for backend in ("torch", "onnx", "openvino")
        }

    before = all_fingerprints()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model_qint8_avx512.onnx").write_bytes(b"quantized")
    assert all_fingerprints() == before
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    with_graph = all_fingerprints()
    assert {backend for backend in before if before[backend] != with_graph[backend]} == {"onnx"}
    (folder / "onnx" / "model.onnx_data").write_bytes(b"weights")
    assert all_fingerprints()["onnx"] != with_graph["onnx"]


def test_the_hub_is_asked_for_the_files_of_the_backend(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, revision, allow_patterns):
        asked[name] = (revision, allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert (
        locate("someone/torch-model@v1") == Path(tmp_path) == locate("someone/exported", "openvino")
    )
    assert asked["someone/torch-model"][0] == "v1" and asked["someone/exported"][0] is None
    assert "*.safetensors" in asked["someone/torch-model"][1] and not any(
        "openvino" in name for name in asked["someone/torch-model"][1]
    )
    assert {"*.safetensors", "*openvino_model.xml", "*openvino_model.bin"} <= set(
        asked["someone/exported"][1]
    )


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch, encoder, backend):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("miner.models.encoder.import_module", import_module)
    with pytest.raises(
        UserError, match=rf"pip install 'sentence-transformers\[{backend}\]'"
    ) as caught:
        load_encoder(Encoder(encoder=encoder, backend=backend))
    assert "\n" not in str(caught.value)


def test_a_backend_has_its_own_dtype():
    assert resolve(Encoder(backend="onnx", device="cpu"))[1] == "fp32"
    with pytest.raises(
        UserError, match="--backend onnx computes in what its file says, not in bf16"
    ):
        encoder_fingerprint(Encoder(backend="onnx", dtype="bf16"))


def test_workers_take_the_gpus_in_turn(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    current = SimpleNamespace(_identity=())
    monkeypatch.setattr(models.multiprocessing, "current_process", lambda: current)
    assert own_device("cuda") == "cuda"  # no worker
    taken = []
    for number in range(4, 10):  # workers of an earlier stage were 1 to 3
        current._identity = (number,)
        taken.append(own_device("cuda"))
    assert taken == ["cuda:0", "cuda:1", "cuda:2"] * 2
    assert own_device("cuda:1") == "cuda:1" and own_device("cpu") == "cpu"
    assert gpu_count(Encoder(device="cuda", dtype="bf16")) == 3
    assert gpu_count(Encoder(device="cuda:2", dtype="bf16")) == 1
    assert gpu_count(Encoder(device="cpu")) == 0


def test_fp32_on_request_is_fp32(encoder):
    import torch

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        load_encoder.cache_clear()
        load_encoder(Encoder(encoder=encoder, dtype="fp32"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
