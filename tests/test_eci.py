import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.eci import capacity, eci_v1, efficiency, margins

PUBLISHED = [  # arXiv 2603.20990 v1: source, N, S, D, ECI
    ("BM25", 50, 0.577, 0.199, 1.16),
    ("Cross-Encoder", 25, 0.606, 0.175, 0.88),
    ("LLM", 3, 0.656, 0.110, 0.26),
    ("BM25+Cross-Encoder", 75, 0.587, 0.192, 1.25),
    ("LLM+BM25", 53, 0.620, 0.152, 0.97),
    ("Cross-Encoder+LLM", 28, 0.631, 0.143, 0.79),
]
positive = st.floats(1e-6, 2)


@pytest.mark.parametrize(("source", "n", "signal", "margin", "eci"), PUBLISHED)
def test_published_table(source, n, signal, margin, eci):
    assert round(eci_v1(n, signal, margin), 2) == eci


def test_published_row_that_is_cut_not_rounded():
    value = eci_v1(78, 0.621, 0.152)  # LLM+BM25+Cross-Encoder, printed as 1.06
    assert round(value, 3) == 1.067
    assert int(value * 100) / 100 == 1.06


@pytest.mark.parametrize(
    "other",
    [np.log, lambda n: np.log2(1 + n), lambda n: np.log10(1 + n), lambda n: np.log1p(n) / 2],
)
def test_no_other_capacity_fits(other):
    assert any(
        round(other(n) * efficiency(signal, margin), 2) != eci
        for _, n, signal, margin, eci in PUBLISHED
    )


@pytest.mark.parametrize(
    ("signal", "margin"),
    [(0.0, 0.5), (-0.2, 0.5), (0.5, 0.0), (0.5, -0.1), (-0.5, 0.5), (-0.4, -0.4), (np.nan, 0.5)],
)
def test_zero_outside_its_domain_and_no_pole(signal, margin):
    assert efficiency(signal, margin) == 0.0
    assert eci_v1(10, signal, margin) == 0.0


def test_no_negatives_is_no_information():
    assert capacity(0) == 0.0
    assert eci_v1(0, 0.5, 0.5) == 0.0


def test_arrays_are_scored_one_by_one():
    n, signal, margin, eci = (np.array(column) for column in list(zip(*PUBLISHED, strict=True))[1:])
    found = eci_v1(n, np.append(signal[:-1], -1.0), margin)
    assert found.shape == (6,)
    assert found.round(2).tolist() == [*eci[:-1], 0.0]


@given(positive, positive)
def test_efficiency_is_a_mean_and_highest_where_signal_equals_margin(signal, margin):
    value = efficiency(signal, margin)
    assert min(signal, margin) * (1 - 1e-12) <= value <= max(signal, margin) * (1 + 1e-12)
    assert value == efficiency(margin, signal)
    assert value <= efficiency((signal + margin) / 2, (signal + margin) / 2) * (1 + 1e-12)


def test_margins_of_every_positive_with_every_negative():
    p, n = np.array([0.75, 0.25]), np.array([0.5, 0.875, -0.25])
    assert margins(p, n, hinge=False).tolist() == [[0.25, -0.125, 1.0], [-0.25, -0.625, 0.5]]
    assert margins(p, n, hinge=True).tolist() == [[0.25, 0.0, 1.0], [0.0, 0.0, 0.5]]
    assert margins(p, np.empty(0), hinge=True).shape == (2, 0)
