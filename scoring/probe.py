"""The artefact probe: can a classifier of words alone tell negatives from what they were made of?

A model trained on negatives that can be told from real texts learns the difference, not the task.
Each negative is held against its original: TF-IDF of words and pairs of words (or vectors that are
given), logistic regression, folds that keep a group together; the share that it gets right is about
.5 where nothing tells. Where words were exchanged between the texts themselves, folds by query make
it fall below .5: what one fold brought in too often, the other folds took out too often. There all
pairs that exchanged the same two words are one group, so that each fold is balanced in itself.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from miner.corpus import Documents
from miner.seeds import generator, uniform
from miner.store import Run
from miner.tables import METRICS, conform

RESAMPLES = 1000
TELLING = 10
CLOSED = 0.99  # from this share of negatives on that have one with the opposite exchange


class Probe(NamedTuple):
    """What a probe found.

    Attributes:
        accuracy: share of texts, originals and negatives alike, that are told rightly, with its
            interval over groups.
        low, high: of the accuracy, 95 %.
        auc: chance that a negative looks more like one than an original does, mean over folds.
        pairs: of an original and a negative.
        telling: words that speak for a negative, then words that speak for an original, the
            strongest first; empty for vectors.
        folds: what they keep together: a "query", or an "exchange" of two words.
    """

    accuracy: float
    low: float
    high: float
    auc: float
    pairs: int
    telling: tuple[list[str], list[str]]
    folds: str = "query"


def artefact_probe(
    originals: Sequence[str],
    negatives: Sequence[str],
    groups: np.ndarray,
    vectors: tuple[np.ndarray, np.ndarray] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Probe:
    """Tell negatives from originals, pair by pair.

    Args:
        originals: p texts.
        negatives: p texts, each made of, or found for, the original in its place.
        groups: (p,) what must not be split over folds, such as the image of a caption.
        vectors: of originals and negatives, (p, d) each, instead of their words.
        folds: how many; fewer where there are fewer groups.
        seed: of the folds and the interval.

    Raises:
        ValueError: there are fewer than two groups.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    _, group = np.unique(groups, return_inverse=True)
    if len(group) == 0 or group.max() == 0:
        raise ValueError("the probe needs pairs of at least two groups")
    texts, label = np.array([*originals, *negatives], object), np.repeat([0, 1], len(originals))
    both, right, areas = np.tile(group, 2), np.zeros(len(label)), []
    split = GroupKFold(min(folds, int(group.max()) + 1), shuffle=True, random_state=seed)
    for train, test in split.split(label, label, both):
        seen, unseen = _features(texts, vectors, train, test)
        model = LogisticRegression(max_iter=1000).fit(seen, label[train])
        decided = model.decision_function(unseen)
        right[test] = (decided > 0) == label[test]
        areas.append(roc_auc_score(label[test], decided))
    telling = _telling(texts, label) if vectors is None else ([], [])
    interval = _interval(right, both, seed)
    return Probe(float(right.mean()), *interval, float(np.mean(areas)), len(originals), telling)


def _features(
    texts: np.ndarray,
    vectors: tuple[np.ndarray, np.ndarray] | None,
    train: np.ndarray,
    test: np.ndarray,
) -> tuple[Any, Any]:
    if vectors is not None:
        dense = np.concatenate(vectors)
        return dense[train], dense[test]
    words = _words()
    return words.fit_transform(texts[train]), words.transform(texts[test])


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2))


def _telling(texts: np.ndarray, label: np.ndarray) -> tuple[list[str], list[str]]:
    from sklearn.linear_model import LogisticRegression

    words = _words()
    weight = LogisticRegression(max_iter=1000).fit(words.fit_transform(texts), label).coef_[0]
    names, order = words.get_feature_names_out(), np.argsort(weight, kind="stable")
    return [str(name) for name in names[order[::-1][:TELLING]]], [
        str(name) for name in names[order[:TELLING]]
    ]


def _interval(right: np.ndarray, group: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by drawing groups with replacement."""
    total, count = np.bincount(group, right), np.bincount(group)
    rng = generator(seed)
    means = [
        total[drawn].sum() / count[drawn].sum()
        for drawn in (rng.integers(len(count), size=len(count)) for _ in range(RESAMPLES))
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


class ProbePairs(NamedTuple):
    """Negatives with the texts they are held against, which pairs belong together, and the lemmas
    that left and came in, if the negatives were made so.
    """

    originals: list[str]
    negatives: list[str]
    groups: list[str]
    exchanged: list[tuple[str, str] | None]


def closed_groups(exchanged: Sequence[tuple[str, str] | None]) -> list[str] | None:
    """Return the group of each pair by the two words that changed places; None where these are not
    exchanged as often one way as the other, so that such groups would hide what tells.

    >>> closed_groups([("dog", "cat"), ("cat", "dog")])
    ['cat dog', 'cat dog']
    >>> closed_groups([("dog", "cat"), ("dog", "cat")]) is None
    True
    """
    count = Counter(exchanged)
    both = sum(
        min(times, count[words[1], words[0]]) for words, times in count.items() if words is not None
    )
    if both < CLOSED * len(exchanged):
        return None
    return [" ".join(sorted(words or ())) for words in exchanged]


def probe_set(run: Run, name: str, most: int, seed: int) -> Probe | None:
    """Probe a set; None if its negatives belong to fewer than two groups.

    A made negative is held against its parent, another against its query's first positive. Queries
    with a first positive in common, such as captions of one image, are one group. Of more than
    `most` pairs a part is drawn, by a hash of seed and ids. Of a set of exchanges see
    `closed_groups`.
    """
    total = sum(len(run.read(f"{run.SETS}/{name}", key)) for key in run.query_shards())
    share, found = most / max(total, 1), ProbePairs([], [], [], [])
    for key in run.query_shards():
        _gather(run, name, key, share, seed, found)
    if len(set(found.groups)) < 2:
        return None
    closed = closed_groups(found.exchanged) or []
    folds, groups = ("exchange", closed) if len(set(closed)) > 1 else ("query", found.groups)
    probe = artefact_probe(found.originals, found.negatives, np.array(groups), seed=seed)
    return probe._replace(folds=folds)


def _gather(run: Run, name: str, key: str, share: float, seed: int, found: ProbePairs) -> None:
    documents, first = Documents(run, key), dict[str, str]()
    for row in run.read(run.POSITIVES, key).to_pylist():
        first[row["query_id"]] = min(first.get(row["query_id"], row["doc_id"]), row["doc_id"])
    made = {row["doc_id"]: row for row in documents.made.to_pylist()}
    rows = run.read(f"{run.SETS}/{name}", key)
    pairs = [
        (first[query_id], made.get(doc_id, {}).get("parent_id") or first[query_id], doc_id)
        for query_id, doc_id in zip(
            rows["query_id"].to_pylist(), rows["doc_id"].to_pylist(), strict=True
        )
        if query_id in first and (share >= 1 or uniform(seed, query_id, doc_id) < share)
    ]
    found.originals.extend(documents.texts(documents.rows([parent for _, parent, _ in pairs])))
    found.negatives.extend(documents.texts(documents.rows([doc_id for _, _, doc_id in pairs])))
    found.groups.extend(pair[0] for pair in pairs)
    edits = [(made.get(doc_id) or {}).get("detail") or {} for _, _, doc_id in pairs]
    found.exchanged.extend(
        (edit["old_lemma"], edit["new_lemma"]) if edit.get("new_lemma") else None for edit in edits
    )


def rows_of(name: str, probe: Probe) -> pa.Table:
    """Return a probe as rows of the metrics table."""
    common: dict[str, Any] = {"set_name": name, "k": None, "n": probe.pairs}
    rows = [
        {
            "measure": "probe_accuracy",
            "value": probe.accuracy,
            "low": probe.low,
            "high": probe.high,
            **common,
        },
        {"measure": "probe_auc", "value": probe.auc, "low": None, "high": None, **common},
    ]
    return conform(pa.Table.from_pylist(rows, METRICS.schema), METRICS)
