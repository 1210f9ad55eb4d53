"""The torch modules against the NumPy reference, and the reference against finite differences
and numbers worked out by hand.
"""

import importlib.util
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cement_reference import cement_reference, gradient_shares
from conftest import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.errors import UserError
from miner.files import write_table
from scoring.cement import cement_margins
from scoring.cement_torch import cement_loss

ROOT = Path(__file__).parents[1]


def batch(
    seed: int, b: int, h: int, d: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of uneven lengths, and ratings of which some are missing."""
    random = np.random.default_rng(seed)
    anchors, positives = (
        random.normal(size=(b, d)) * random.uniform(0.1, 9, (b, 1)) for _ in range(2)
    )
    ratings = np.where(random.random((b, h)) < 0.2, np.nan, random.uniform(1, 5, (b, h)))
    return (
        anchors,
        positives,
        random.normal(size=(b, h, d)) * random.uniform(0.1, 9, (b, h, 1)),
        ratings,
    )


BATCH = {
    "seed": st.integers(0, 2**32 - 1),
    "b": st.integers(1, 6),
    "h": st.integers(1, 3),
    "tau": st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    "symmetric": st.booleans(),
}


def plain(anchors, positives, negatives, margin, tau):
    """The formula, term by term."""

    def cosine(x, y):
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    rows = []
    for i, anchor in enumerate(anchors):
        right = math.exp(cosine(anchor, positives[i]) / tau)
        own = sum(
            math.exp((cosine(anchor, n) + m) / tau)
            for n, m in zip(negatives[i], margin[i], strict=True)
        )
        others = sum(
            math.exp(cosine(anchor, positive) / tau)
            for j, positive in enumerate(positives)
            if j != i
        )
        rows.append(-math.log(right / (right + own + others)))
    return rows


def test_margins_by_hand():
    assert cement_margins([1, 3, 5, math.nan], 0.1, 0.2).tolist() == pytest.approx(
        [0.1, 0.2, 0.3, 0.1]
    )
    assert cement_margins(3.0, a=-0.4).tolist() == pytest.approx(-0.2)
    assert cement_margins(np.array([[2.0], [5.0]], np.float32), 0, 1).tolist() == [[0.25], [1.0]]
    for rating in (0.99, 5.5, math.inf):
        with pytest.raises(UserError, match=f"concreteness {rating:g} is outside 1 to 5"):
            cement_margins([2, rating, math.nan])


def test_the_reference_on_a_batch_worked_out_by_hand():
    anchors, positives, negatives = (
        np.eye(2) * 3,
        np.eye(2) * 0.5,
        np.array([[0.0, 2.0], [1.0, 1.0]]),
    )
    found = cement_reference(anchors, positives, negatives, np.array([0.5, 0.0]), tau=0.5)
    e = math.exp
    assert found.rows.tolist() == pytest.approx(
        [math.log(1 + e(1 - 2) + e(0 - 2)), math.log(1 + e(2**0.5 - 2) + e(-2))]
    )
    assert found.loss == pytest.approx(found.rows.mean())
    p = e(1) / (e(2) + e(1) + e(0))  # of the first row's own negative: s' = 0, m / tau = 1
    assert found.own[0, 0] == pytest.approx(p / 0.5 / 2)
    assert found.similarities[0].tolist() == pytest.approx(
        [(e(2) / (e(2) + e(1) + 1) - 1), 1 / (e(2) + e(1) + 1)]
    )


@settings(max_examples=40, deadline=None)
@given(**BATCH)
def test_the_reference_is_the_formula(seed, b, h, tau, symmetric):
    anchors, positives, negatives, ratings = batch(seed, b, h)
    margin = cement_margins(ratings, 0.02, 0.1)
    rows = plain(anchors, positives, negatives, margin, tau)
    if symmetric:
        back = plain(positives, anchors, np.zeros((b, 0, 5)), np.zeros((b, 0)), tau)
        rows = [(one + other) / 2 for one, other in zip(rows, back, strict=True)]
    assert cement_reference(
        anchors, positives, negatives, margin, tau, symmetric
    ).rows.tolist() == pytest.approx(rows, rel=1e-9, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(**BATCH | {"tau": st.sampled_from([0.1, 0.3, 1.0])})
def test_the_reference_gradients_are_the_slopes_of_its_loss(seed, b, h, tau, symmetric):
    parts, step = list(batch(seed, b, h)), 1e-6
    margin = cement_margins(parts.pop(), 0.02, 0.1)
    found = cement_reference(*parts, margin, tau, symmetric)
    for number, gradient in enumerate((found.anchors, found.positives, found.negatives)):
        direction = np.random.default_rng(seed).normal(size=parts[number].shape) * np.linalg.norm(
            parts[number], axis=-1, keepdims=True
        )
        ahead, behind = (
            [*parts[:number], parts[number] + way * step * direction, *parts[number + 1 :]]
            for way in (1, -1)
        )
        slope = (
            cement_reference(*ahead, margin, tau, symmetric).loss
            - cement_reference(*behind, margin, tau, symmetric).loss
        ) / (2 * step)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-4, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(**BATCH)
def test_torch_gives_the_references_loss_and_gradients(seed, b, h, tau, symmetric):
    import torch

    from scoring.cement_torch import CementLoss

    *vectors, ratings = batch(seed, b, h)
    expected = cement_reference(*vectors, cement_margins(ratings, 0.02, 0.1), tau, symmetric)
    leaves = [torch.tensor(part, requires_grad=True) for part in vectors]
    value = CementLoss(tau=tau, m0=0.02, a=0.1, symmetric=symmetric)(*leaves, torch.tensor(ratings))
    value.backward()
    assert value.item() == pytest.approx(expected.loss, rel=1e-6, abs=1e-9)
    for leaf, gradient in zip(
        leaves, (expected.anchors, expected.positives, expected.negatives), strict=True
    ):
        np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-6, atol=1e-6)


def test_torch_gives_the_references_gradients_by_similarity():
    import torch

    # orthonormal rows: what is added to an anchor along a positive's axis is the similarity itself
    b = 4
    axes = np.eye(3 * b)
    anchors, positives, negatives = axes[:b], axes[b : 2 * b], axes[2 * b :]
    expected = cement_reference(anchors, positives, negatives, np.full(b, 0.1), 0.2)
    leaf = torch.tensor(anchors, requires_grad=True)
    cement_loss(
        leaf,
        torch.tensor(positives),
        torch.tensor(negatives),
        torch.full((b,), 0.1, dtype=torch.float64),
        0.2,
    ).backward()
    np.testing.assert_allclose(leaf.grad[:, b : 2 * b].numpy(), expected.similarities, atol=1e-12)
    np.testing.assert_allclose(
        np.diag(leaf.grad[:, 2 * b :].numpy()), expected.own[:, 0], atol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(**{name: BATCH[name] for name in ("seed", "b", "tau")})
def test_a_margin_multiplies_the_imbalance_exactly(seed, b, tau):
    anchors, positives, negatives, ratings = batch(seed, b, 1)
    margin = cement_margins(ratings, 0.02, 0.1)
    without, with_ = (
        gradient_shares(anchors, positives, negatives, m, tau) for m in (np.zeros(b), margin)
    )
    np.testing.assert_allclose(
        with_.imbalance, without.imbalance * np.exp(-margin[:, 0] / tau), rtol=1e-9
    )
    reference = cement_reference(anchors, positives, negatives, margin, tau)
    own, others = (
        reference.own[:, 0],
        reference.similarities.sum(1) - np.diag(reference.similarities),
    )
    np.testing.assert_allclose(with_.own * (own + others), own, atol=1e-9)
    np.testing.assert_allclose(with_.own + with_.in_batch, 1)


def test_a_row_alone_has_all_its_gradient_on_its_own_negatives():
    anchors, positives, negatives, ratings = batch(1, 1, 2)
    assert [
        part.tolist()
        for part in gradient_shares(anchors, positives, negatives, cement_margins(ratings))
    ] == [[1.0], [0.0], [0.0]]


def test_a_cold_temperature_in_float32_overflows_nowhere():
    import torch

    from scoring.cement_torch import CementLoss

    anchors = torch.eye(8, requires_grad=True)
    for positives in (torch.eye(8), -torch.eye(8)):  # losses near 0 and near 400
        value = CementLoss(tau=0.01, a=2.0)(anchors, positives, torch.eye(8), torch.full((8,), 5.0))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(anchors.grad).all()
    shares = gradient_shares(np.eye(8), np.eye(8), np.eye(8), np.full(8, 2.0), 0.01)
    assert np.isfinite(shares).all() and (shares.own > 0.999).all()


def test_missing_ratings_mean_the_margin_m0_and_sign_turns_margins_round():
    import torch

    from scoring.cement_torch import CementLoss

    *vectors, ratings = batch(3, 4, 2)
    parts = [torch.tensor(part, dtype=torch.float32) for part in vectors]
    none = CementLoss(m0=0.1)(*parts)
    assert none.item() == pytest.approx(
        cement_reference(*vectors, np.full((4, 2), 0.1)).loss, rel=1e-5
    )
    assert CementLoss(m0=0.1)(*parts, torch.full((4, 2), torch.nan)).item() == none.item()
    turned = CementLoss(m0=0.1, a=0.2, sign=-1)(*parts, torch.tensor(ratings))
    assert turned.item() == pytest.approx(
        cement_reference(*vectors, -cement_margins(ratings, 0.1, 0.2)).loss, rel=1e-5
    )
    flat = [parts[0], parts[1], parts[2][:, 0]]  # one negative a row needs no second axis
    assert CementLoss()(*flat, torch.tensor(ratings[:, 0])).item() == pytest.approx(
        cement_reference(*vectors[:2], vectors[2][:, 0], cement_margins(ratings[:, 0])).loss,
        rel=1e-5,
    )


def test_tau_is_learned_only_if_asked_for():
    import torch

    from scoring.cement_torch import CementLoss

    *vectors, ratings = batch(5, 4, 1)
    parts = [torch.tensor(part) for part in vectors]
    fixed, learned = CementLoss(tau=0.3), CementLoss(tau=0.3, learn_tau=True).double()
    fixed(*parts, torch.tensor(ratings))
    learned(*parts, torch.tensor(ratings)).backward()
    margin, step = cement_margins(ratings), 1e-6
    slope = (
        cement_reference(*vectors, margin, 0.3 + step).loss
        - cement_reference(*vectors, margin, 0.3 - step).loss
    ) / (2 * step)
    # d tau / d log tau = tau
    assert learned.log_tau.grad.item() == pytest.approx(slope * 0.3, rel=1e-4)
    assert list(fixed.parameters()) == [] and fixed.tau == 0.3


def test_margins_import_no_torch_and_the_losses_pickle():
    code = "import sys, scoring.cement; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    from scoring.cement_torch import CementLoss

    again = pickle.loads(pickle.dumps(CementLoss(tau=0.07, m0=0.01)))  # noqa: S301
    assert type(again) is CementLoss and again.tau == 0.07 and again.m0 == 0.01


def test_the_trainers_loss_is_that_of_the_embeddings(tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer

    from scoring.cement_torch import CementLoss, SentenceCementLoss

    model = SentenceTransformer(str(make_encoder(tmp_path, seed=7)), device="cpu").eval()
    columns = [
        ["moon tides", "bees dance", "glass"],
        ["moon", "honey", "lamps"],
        ["copper", "metal", "current"],
        ["a", "b", "c"],
    ]
    features = [model.tokenize(texts) for texts in columns]
    ratings = torch.tensor([[4.5, 1.5], [2.0, torch.nan], [5.0, 1.0]])
    embedded = [model.encode(texts).astype(np.float64) for texts in columns]
    loss = SentenceCementLoss(model, CementLoss(tau=0.1, a=0.3))
    expected = cement_reference(
        *embedded[:2], np.stack(embedded[2:], 1), cement_margins(ratings.numpy(), a=0.3), 0.1
    )
    assert loss(features, ratings).item() == pytest.approx(expected.loss, rel=1e-4)
    assert loss.get_config_dict() == {
        "tau": pytest.approx(0.1),
        "m0": 0.0,
        "a": 0.3,
        "sign": 1,
        "symmetric": False,
    }
    with pytest.raises(
        UserError, match="needs columns anchor, positive, negative; found 2 columns"
    ):
        loss(features[:2], ratings)


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location(
        "train_with_cement", ROOT / "examples" / "train_with_cement.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_trains_a_model_from_an_export(example, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pytest.importorskip("accelerate", reason="the trainer needs it")
    from sentence_transformers import SentenceTransformer

    folder, model = tmp_path / "export", str(make_encoder(tmp_path / "tiny", seed=7))
    rows = [
        ("moon tides", "moon", "copper", 4.5),
        ("bees dance", "honey", "metal", None),
        ("glass lamps", "lamps", "bees", 1.5),
    ]
    write_table(
        folder / "00000.parquet",
        pa.table(dict(zip((*example.TEXTS, "concreteness"), zip(*rows, strict=True), strict=True))),
    )
    example.main(
        [
            str(folder),
            "--model",
            model,
            "--out",
            str(tmp_path / "out"),
            "--steps",
            "12",
            "--batch-size",
            "3",
            "--learning-rate",
            "0.003",
            "--margin-slope",
            "0.3",
        ]
    )
    said = capsys.readouterr().out
    before, after = (float(found) for found in re.findall(r"mean margin (-?[\d.]+)", said))
    assert "3 triplets, 67% with a rating" in said and after > before
    saved = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert example.mean_margin(saved, example.read_triplets(folder)) == pytest.approx(
        after, abs=1e-4
    )


def test_the_example_says_what_an_export_lacks(example, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_table(tmp_path / "00000.parquet", pa.table({name: ["a"] for name in example.TEXTS}))
    with pytest.raises(
        SystemExit, match=r"missing concreteness \(found anchor, positive, negative\)"
    ):
        example.read_triplets(tmp_path)
    with pytest.raises(SystemExit, match="no Parquet files"):
        example.read_triplets(tmp_path / "none")
