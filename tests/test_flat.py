"""One test body for every exact engine: the same bytes as the answer by definition."""

import logging
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.search import faiss_scan, flat, rounding, torch_scan
from miner.search.faiss_scan import faiss_cpu, limited, or_cpu, scan_faiss
from miner.search.flat import Engine, choose_engine, deal
from miner.search.rounding import rounded
from miner.search.topk import Top, dots
from miner.search.torch_scan import scan_device, scan_numpy, scan_torch


def at_most(limit, queries, documents, depth):
    """FAISS, as it would be if it had the limit of a GPU."""
    assert depth <= limit
    return faiss_cpu(queries, documents, depth)


def on_gpu(name, make):
    return pytest.param(
        lambda: [make(number) for number in range(flat.gpus(name))],
        id=f"{name} GPU",
        marks=pytest.mark.skipif(flat.gpus(name) == 0, reason=f"{name} sees no GPU here"),
    )


ENGINES = [
    pytest.param(lambda: [scan_numpy], id="numpy"),
    pytest.param(lambda: [partial(scan_torch, dtype="bf16")], id="torch bf16"),
    pytest.param(lambda: [partial(scan_torch, dtype="fp32")], id="torch fp32"),
    pytest.param(
        lambda: [partial(scan_device, device="cpu", kept={}, dtype="bf16")], id="as on a GPU, bf16"
    ),
    pytest.param(
        lambda: [partial(scan_device, device="cpu", kept={}, dtype="fp32") for _ in range(3)],
        id="as on three GPUs, fp32",
    ),
    pytest.param(lambda: [partial(scan_faiss, propose=faiss_cpu)], id="faiss"),
    pytest.param(
        lambda: [partial(scan_faiss, propose=limited(partial(at_most, 8), 8))],
        id="faiss with a limit",
    ),
    on_gpu("torch", lambda number: partial(scan_device, device=f"cuda:{number}", kept={})),
    on_gpu("faiss", lambda number: partial(scan_faiss, propose=faiss_scan.faiss_gpu(number))),
]


def by_definition(queries, documents, depth):
    """All scores, sorted by score, then row."""
    left, right = np.divmod(np.arange(len(queries) * len(documents)), len(documents))
    scores = dots(queries, left, documents, right).reshape(len(queries), len(documents))
    order = np.array(
        [np.lexsort((np.arange(len(documents)), -line)) for line in scores], np.int64
    ).reshape(scores.shape)[:, :depth]
    pad = ((0, 0), (0, max(0, depth - len(documents))))
    rows = np.pad(order, pad, constant_values=-1)
    return rows, np.pad(np.take_along_axis(scores, order, 1), pad, constant_values=-np.inf)


def cut(documents, edges):
    edges = [0, *sorted(edge % (len(documents) + 1) for edge in edges), len(documents)]
    blocks = [(low, documents[low:high]) for low, high in pairwise(edges) if low < high]
    return [(low, lambda block=block: block) for low, block in blocks]


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1].tobytes() == expected[1].tobytes()
    assert (found[0].dtype, found[1].dtype) == (np.int64, np.float32)


def vectors(random, count, width, kind):
    # blocks of equal documents, larger than what an engine is asked for; scores tie, also at zero
    # and below
    if kind == "few":
        return random.integers(-2, 3, (3, width)).astype(np.float32)[random.integers(0, 3, count)]
    made = random.normal(size=(count, width)) - (kind == "negative") * 2.0
    scale = {
        "unit": 1 / np.linalg.norm(made, axis=1, keepdims=True),
        "any length": 10.0 ** random.uniform(-3, 3, (count, 1)),
    }.get(kind, 1)
    made = (made * scale).astype(np.float32)
    # some documents come twice
    return made[random.integers(0, count, count)] if count > 5 else made


@pytest.mark.parametrize("engine", ENGINES)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(0, 5), st.integers(1, 90), st.integers(1, 21)),
    depth=st.integers(1, 100),
    edges=st.lists(st.integers(0, 90), max_size=3),
    kind=st.sampled_from(["few", "unit", "any length", "negative"]),
)
@settings(max_examples=60, deadline=None)
def test_every_engine_gives_the_exact_answer(engine, seed, shape, depth, edges, kind):
    random, (n, m, width) = np.random.default_rng(seed), shape
    queries, documents = vectors(random, n, width, kind), vectors(random, m, width, kind)
    if kind == "negative":
        queries = -queries
    same(
        deal(engine(), queries, cut(documents, edges), depth),
        by_definition(queries, documents, depth),
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_on_more_documents_than_a_tile_and_a_piece(engine, monkeypatch):
    monkeypatch.setattr(rounding, "PIECE", 1500)
    monkeypatch.setattr(torch_scan, "TILE_DOCUMENTS", 700)
    monkeypatch.setattr(torch_scan, "TILE_QUERIES", 7)
    random = np.random.default_rng(7)
    documents = np.vstack(
        [vectors(random, 3000, 96, "unit"), np.repeat(vectors(random, 2, 96, "unit"), 400, axis=0)]
    )
    # the last finds 400 copies of itself
    queries = np.vstack([vectors(random, 15, 96, "unit"), documents[-1:]])
    expected = by_definition(queries, documents, 50)
    assert expected[0][-1].tolist() == list(range(3400, 3450))
    same(deal(engine(), queries, cut(documents, [1700, 3601]), 50), expected)


@pytest.mark.parametrize("engine", ENGINES)
# 1 + part becomes 1 and 1 + 1 / 128
@pytest.mark.parametrize(("part", "last", "sign"), [(1 / 265, 110 / 128, 1), (1 / 255, 1, -1)])
def test_rounding_that_errs_in_one_direction_is_allowed_for(engine, part, last, sign):
    """The best document comes last; once it and the query are rounded to bfloat16 it looks worse
    than all others, which are not changed.
    """
    query = sign * np.repeat((1 + part, 1), (125, 126)).astype(np.float32)[None]
    documents = np.zeros((41, 251), np.float32)
    documents[:40, 125:], documents[:40, 250], documents[40, :125] = 1, last, 1 + part
    for edges in ([], [30]):
        found = deal(engine(), query, cut(documents, edges), 2)
        assert found[0].tolist() == [[40, 0]]
        same(found, by_definition(query, documents, 2))


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_that_are_rounded_themselves_are_allowed_for(engine):
    """Query and documents are of bfloat16 exactly, but their products are not: -257.5 and, at
    last, -257.25 are both -258.
    """
    query, documents = np.full((1, 258), -1, np.float32), np.ones((41, 258), np.float32)
    documents[:40, 257], documents[40, 257] = 0.5, 0.25
    assert deal(engine(), query, cut(documents, [30]), 2)[0].tolist() == [[40, 0]]


def test_scores_are_the_products_in_float64():
    random = np.random.default_rng(3)
    for width in (1, 3, 4, 7, 31, 97, 384):
        left, right = (random.normal(size=(count, width)).astype(np.float32) for count in (4, 5))
        pairs = np.divmod(np.arange(20), 5)
        exact = (left.astype(np.float64) @ right.T.astype(np.float64)).ravel()
        np.testing.assert_allclose(
            dots(left, pairs[0], right, pairs[1]), exact, rtol=1e-7, atol=1e-12
        )


def test_no_document_scores_minus_infinity():
    ones = np.ones((2, 5), np.float32)
    assert dots(ones, np.array([0, 1]), ones, np.array([1, -1])).tolist() == [5.0, -np.inf]
    top = Top(ones, 3)
    top.offer_some(
        (np.array([2, 1]), np.array([1, -1, 0]), np.full(3, 5, np.float32)), np.ones(2), ones, 10
    )
    assert top.result()[0].tolist() == [[11, -1, -1], [10, -1, -1]]
    assert top.result()[1].tolist() == [[5.0, -np.inf, -np.inf]] * 2


def test_there_is_one_zero():
    tiny = np.full((1, 4), 1e-30, np.float32)
    zero = dots(-tiny, np.zeros(1, int), tiny, np.zeros(1, int))
    # -4e-60 is minus zero in float32, which would sort elsewhere
    assert zero.tolist() == [0.0] and not np.signbit(zero[0])


def test_bf16_is_rounded_to_the_nearest_and_the_change_measured():
    import torch

    made = vectors(np.random.default_rng(5), 40, 33, "any length")
    tensor = torch.from_numpy(made)
    bits = rounded(made, "bf16")
    np.testing.assert_array_equal(bits.values, tensor.bfloat16().view(torch.uint16).numpy())
    np.testing.assert_allclose(
        bits.errors,
        np.linalg.norm((tensor.double() - tensor.bfloat16().double()).numpy(), axis=1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        bits.norms, np.linalg.norm(made.astype(np.float64), axis=1), rtol=1e-5
    )
    assert (
        rounded(made, "fp32").values.tobytes() == made.tobytes()
        and not rounded(made, "fp32").errors.any()
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_scores_are_never_further_off_than_the_bound(dtype):
    random = np.random.default_rng(11)
    for width in (3, 64, 500):
        left, right = (
            vectors(random, 30, width, "any length"),
            vectors(random, 50, width, "any length"),
        )
        a, b = rounded(left, dtype), rounded(right, dtype)
        about = (
            torch_scan._tensor(a.values).double() @ torch_scan._tensor(b.values).double().T
        ).numpy()
        off = np.abs(about - left.astype(np.float64) @ right.T.astype(np.float64)).max(axis=1)
        assert (off <= rounding.error_bounds(a, b)).all()
        if dtype == "bf16":  # and the bound is worth something
            assert (rounding.error_bounds(a, b) < 0.01 * a.norms * b.norms.max()).all()


def test_an_engine_that_is_further_off_than_it_may_be_is_found_out():
    queries, documents = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    top = Top(queries, 2)
    with pytest.raises(UserError, match="further off"):
        top.offer_tile(
            slice(0, 4), (queries @ documents.T) * np.float32(1.01), np.full(4, 1e-5), documents, 0
        )

    def wrong(queries, documents, depth):
        places, scores = faiss_cpu(queries, documents, depth)
        return places, scores + np.float32(0.01)

    with pytest.raises(UserError, match="further off"):
        deal([partial(scan_faiss, propose=wrong)], queries, [(0, lambda: documents)], 2)


class Full:
    """A device whose memory holds scores of so many documents and no more."""

    def __init__(self, monkeypatch, holds):
        self.holds, self.asked, self.real = holds, [], torch_scan._offers_of
        monkeypatch.setattr(torch_scan, "_offers_of", self)

    def __call__(self, top, queries, documents):
        import torch

        self.asked.append(len(documents.values))
        if len(documents.values) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(top, queries, documents)


def test_out_of_memory_halves_what_is_searched_at_a_time(monkeypatch, caplog):
    random = np.random.default_rng(2)
    queries, documents = vectors(random, 3, 8, "few"), vectors(random, 2000, 8, "few")
    device = Full(monkeypatch, holds=600)
    found = deal(
        [partial(scan_device, device="cpu", kept={})], queries, [(0, lambda: documents)], 20
    )
    same(found, by_definition(queries, documents, 20))
    assert device.asked == [2000, 1000, 500, 500, 500, 500] and not caplog.records


def test_a_gpu_without_memory_is_said_loudly_and_the_cpu_goes_on(monkeypatch, caplog):
    random = np.random.default_rng(2)
    queries, documents = vectors(random, 3, 8, "unit"), vectors(random, 2000, 8, "unit")
    Full(monkeypatch, holds=600)
    blocks = [
        (0, lambda: documents[:500]),
        (500, lambda: documents[500:1700]),
        (1700, lambda: documents[1700:]),
    ]

    def fills_up(top, pieces, **kwargs):
        def watched():
            for first, piece in pieces:
                if first:
                    torch_scan._offers_of.holds = 10  # something else takes the memory, midway
                yield first, piece

        scan_device(top, watched(), **kwargs)

    same(
        deal([partial(fills_up, device="cpu", kept={})], queries, blocks, 20),
        by_definition(queries, documents, 20),
    )
    assert [record.getMessage().partition(" has")[0] for record in caplog.records] == ["cpu"]
    assert "searching on the CPU" in caplog.text and caplog.records[0].levelno == logging.WARNING


def test_torch_has_as_many_threads_as_before():
    import torch

    before = torch.get_num_threads()
    ones = np.ones((3, 4), np.float32)
    deal([scan_torch], ones, [(0, lambda: ones)], 2)
    with pytest.raises(ValueError, match="no file"):
        deal(
            [scan_torch],
            ones,
            [(0, lambda: ones), (3, lambda: (_ for _ in ()).throw(ValueError("no file")))],
            2,
        )
    assert torch.get_num_threads() == before


def test_documents_stay_on_the_device_for_the_next_queries(monkeypatch):
    random = np.random.default_rng(4)
    queries, documents = vectors(random, 3, 8, "unit"), vectors(random, 90, 8, "unit")
    kept, blocks = {}, [(0, lambda: documents[:40]), (40, lambda: documents[40:])]
    scan = partial(scan_device, device="cpu", kept=kept, dtype="fp32")
    first = deal([scan], queries, blocks, 5)
    assert len(kept) == 2
    monkeypatch.setattr(
        torch_scan,
        "_tensor",
        lambda values, real=torch_scan._tensor: (
            real(values) if len(values) == 3 else pytest.fail("sent again")
        ),
    )
    same(deal([scan], queries, blocks, 5), first)


def test_faiss_that_fails_on_the_gpu_is_said_loudly_once_and_the_cpu_goes_on(caplog):
    def build():
        raise RuntimeError("Error in x at y.cpp:3: out of memory\nmore")

    random = np.random.default_rng(6)
    queries, documents = vectors(random, 3, 8, "unit"), vectors(random, 90, 8, "unit")
    blocks = cut(documents, [30, 60])
    same(
        deal([partial(scan_faiss, propose=or_cpu(build))], queries, blocks, 5),
        by_definition(queries, documents, 5),
    )
    assert [record.getMessage() for record in caplog.records] == [
        "FAISS on the GPU failed (out of memory): searching on the CPU"
    ]


def test_which_engine_searches(monkeypatch, caplog):
    monkeypatch.setattr(flat, "gpus", lambda name: 0)
    assert choose_engine("auto", "auto") == Engine("torch", "cpu") and not caplog.records
    assert choose_engine("faiss", "cuda") == Engine("faiss", "cpu")
    assert (
        "faiss sees no GPU here: searching on the CPU" in caplog.text and len(caplog.records) == 1
    )
    monkeypatch.setattr(flat, "gpus", lambda name: 2)
    assert choose_engine("auto", "auto") == Engine("torch", "cuda")
    assert choose_engine("faiss", "auto") == Engine("faiss", "cuda")
    assert choose_engine("torch", "cpu") == Engine("torch", "cpu")


def test_faiss_asked_for_but_missing(monkeypatch):
    monkeypatch.setattr(flat, "find_spec", lambda name: None)
    assert choose_engine("auto", "cpu") == Engine("torch", "cpu")
    with pytest.raises(UserError, match="pip install"):
        choose_engine("faiss", "auto")
