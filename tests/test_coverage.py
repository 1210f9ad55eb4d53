"""Coverage against autograd, plain loops, and what must hold whatever the numbers are."""

import numpy as np
import pytest

from scoring.coverage import Pull, coverage, coverage_cosine, head_gradient

TAU = 0.05


def unit(random, *shape):
    vectors = random.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def plain_pull(query, positive, documents, weights=None):
    """The definition: softmax over the positive and the documents, minus the positive."""
    weights = np.ones(len(documents)) if weights is None else weights
    chances = np.array([1.0, *weights]) * np.exp(
        np.array([query @ positive, *(documents @ query)]) / TAU
    )
    chances /= chances.sum()
    return chances @ np.vstack([positive, documents]) - positive


@pytest.fixture
def toy():
    random = np.random.default_rng(3)
    return unit(random, 7, 5), unit(random, 7, 5), unit(random, 40, 5), random


def test_gradients_are_those_of_a_head_at_the_identity(toy):
    import torch

    queries, positives, documents, _ = toy
    pull = Pull(queries, positives, TAU)
    pull.add(documents)
    head = torch.eye(5, dtype=torch.float64, requires_grad=True)
    z_q, z_p, z_n = (torch.from_numpy(part) @ head.T for part in (queries, positives, documents))
    logits = torch.cat([(z_q * z_p).sum(1, keepdim=True), z_q @ z_n.T], 1) / TAU
    torch.nn.functional.cross_entropy(
        logits, torch.zeros(7, dtype=torch.long), reduction="sum"
    ).backward()
    gradient = head_gradient(queries, pull.gradient()) / TAU
    np.testing.assert_allclose(gradient, head.grad.numpy(), rtol=0, atol=1e-9)


def test_pulls_are_those_of_a_plain_loop_in_any_parts(toy):
    queries, positives, documents, random = toy
    weights = random.integers(0, 3, (7, 40)).astype(float)
    pull = Pull(queries, positives, TAU)
    for part in (slice(0, 1), slice(1, 25), slice(25, 40)):
        pull.add(documents[part], weights[:, part])
    expected = [
        plain_pull(*one, documents, w) for *one, w in zip(queries, positives, weights, strict=True)
    ]
    np.testing.assert_allclose(pull.gradient(), expected, rtol=0, atol=1e-12)


def test_own_documents_are_those_of_a_plain_loop_and_a_query_may_have_none(toy):
    queries, positives, documents, random = toy
    own = [random.permutation(40)[:count] for count in (3, 0, 6, 1, 6, 6, 2)]
    pull = Pull(queries, positives, TAU)
    owner = np.repeat(np.arange(7), [len(rows) for rows in own])
    pull.add_own(owner, np.concatenate(own), documents)
    expected = [
        plain_pull(query, positive, documents[rows])
        for query, positive, rows in zip(queries, positives, own, strict=True)
    ]
    np.testing.assert_allclose(pull.gradient(), expected, rtol=0, atol=1e-12)
    assert not pull.gradient()[1].any()


def test_nothing_overflows_at_a_small_temperature(toy):
    queries, positives, documents, _ = toy
    pull = Pull(queries.astype(np.float32), positives.astype(np.float32), 1e-3)
    pull.add(documents.astype(np.float32))
    best = documents[(queries @ documents.T).argmax(axis=1)]
    harder = (queries * best).sum(1) > (queries * positives).sum(1)
    assert np.isfinite(pull.gradient()).all() and harder.any()
    np.testing.assert_allclose(pull.gradient()[harder], (best - positives)[harder], atol=1e-3)


def test_a_reweighted_sample_is_the_whole_corpus_on_average():
    random = np.random.default_rng(0)
    queries, positives, documents = unit(random, 4, 8), unit(random, 4, 8), unit(random, 3000, 8)
    whole = Pull(queries, positives, 0.3)
    whole.add(documents)
    # mass and pulled are sums, so they are unbiased; their ratio is nearly so
    sums, gradients = [], []
    for seed in range(200):
        rows = np.random.default_rng(seed).permutation(3000)[:300]
        part = Pull(queries, positives, 0.3)
        part.add(documents[rows], np.full((4, 300), 10.0))
        sums.append(part.mass * np.exp(part.top - whole.top))
        gradients.append(part.gradient())
    np.testing.assert_allclose(np.mean(sums, 0), whole.mass, rtol=0.02)
    np.testing.assert_allclose(np.mean(gradients, 0), whole.gradient(), atol=0.01)


def test_coverage_is_one_of_the_reference_itself_and_minus_one_of_its_opposite(toy):
    queries, positives, documents, random = toy
    pull = Pull(queries, positives, TAU)
    pull.add(documents)
    reference = head_gradient(queries, pull.gradient())
    for measure in (coverage, coverage_cosine):
        assert measure(3 * reference, reference) == pytest.approx(1)
        assert measure(-reference, reference) == pytest.approx(-1)
        some = random.normal(size=(6, 5, 5))
        values = measure(some, reference)
        assert values.shape == (6,) and (np.abs(values) <= 1).all()
        np.testing.assert_allclose(values, [measure(one, reference) for one in some])
    assert coverage(np.zeros((5, 5)), reference) == 0
    assert np.isnan(coverage_cosine(np.zeros((5, 5)), reference))
    assert np.isnan(coverage(reference, np.zeros((5, 5))))
