"""Which words of a data set change places, so that negatives and originals have the same words:
pure, and seeded.

If a text gives its word A and takes B, another gives B and takes A. Each word is then brought in as
often as it is taken out, and
nothing in the counts of words tells made texts from real ones; this is what every public set of
substituted captions fails at. What a classifier of words has left are pairs of neighbouring words.
So texts exchange words first where the words on both sides are the same, which keeps every pair's
count; then where the exchange disturbs the counts of pairs least: sum over pairs of (times brought
in - times taken out)^2.
"""

from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from miner.seeds import generator

DEEP = 3  # of texts that wait with one word, how many are asked
FREE = 10**9


class Targets(NamedTuple):
    """s words that can be changed, those of a text together and in order of choice. Words and
    tokens are numbers.

    Attributes:
        text: which text (s,), ascending from 0.
        word: lemma with part of speech (s,).
        token: the word as it would stand in another text (s,), a number of a token as in `left` and
            `right`.
        kind: what must be the same for an exchange (s,): the tag of the Penn Treebank, so that
            inflection fits.
        left: the token before, without an article (s,).
        right: the token after (s,).
        article: whether a or an stands before (s,).
    """

    text: np.ndarray
    word: np.ndarray
    token: np.ndarray
    kind: np.ndarray
    left: np.ndarray
    right: np.ndarray
    article: np.ndarray


class Round(NamedTuple):
    """A pass over the texts that wait: what must be the same, how many partners are weighed, how
    much disturbance is allowed.
    """

    same: tuple[str, ...]
    most: int
    cost: int


ROUNDS = (
    Round(("kind", "article", "left", "right"), 1, 0),
    Round(("kind", "article", "left"), 8, 0),
    Round(("kind", "article", "right"), 8, 0),
    Round(("kind", "article"), 16, 2),
    Round(("kind",), 16, FREE),
)


def exchange(
    targets: Targets,
    neighbours: Sequence[Sequence[int]],
    forbids: Sequence[Container[int]],
    seed: int,
) -> np.ndarray:
    """Return for each target the target whose word it takes (s,) int64; -1 for none. At most one
    target of a text takes part.

    Args:
        targets: the words.
        neighbours: word -> words that may stand for it, the best first; symmetric.
        forbids: text -> words that must not come into it.
        seed: of the order in which texts are served.
    """
    columns = {name: getattr(targets, name).tolist() for name in Targets._fields}
    matcher = _Matcher(columns, [set(near) for near in neighbours], neighbours, forbids)
    order = generator(seed).permutation(len(forbids)).tolist()
    for number in ROUNDS:
        matcher.run(number, order)
    return np.array(matcher.partner, np.int64)


@dataclass
class _Matcher:
    columns: dict[str, list[int]]
    near: Sequence[set[int]]
    ranked: Sequence[Sequence[int]]
    forbids: Sequence[Container[int]]

    def __post_init__(self) -> None:
        text = self.columns["text"]
        self.partner = [-1] * len(text)
        self.served = [False] * len(self.forbids)
        self.of_text: list[list[int]] = [[] for _ in self.forbids]
        self.net: dict[tuple[int, int], int] = {}
        for target, owner in enumerate(text):
            self.of_text[owner].append(target)

    def run(self, rules: Round, order: Sequence[int]) -> None:
        """Serve texts in order: each is exchanged with the best of those that wait, or waits."""
        keys = list(zip(*(self.columns[name] for name in rules.same), strict=True))
        waiting: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(dict)
        for owner in order:
            if self.served[owner]:
                continue
            found = [
                best
                for target in self.of_text[owner]
                if (best := self._best(target, waiting.get(keys[target]), rules))
            ]
            if found:
                # the first choice of those that disturb least
                _, target, other = min(found, key=lambda best: best[0])
                self._pair(target, other)
            else:
                for target in self.of_text[owner]:
                    waiting[keys[target]].setdefault(self.columns["word"][target], []).append(
                        target
                    )

    def _best(
        self, target: int, pool: dict[int, list[int]] | None, rules: Round
    ) -> tuple[int, int, int] | None:
        """Return (disturbance, target, partner) of the partner in a pool that disturbs least; None
        if there is none.
        """
        if not pool:
            return None
        word, best, weighed = self.columns["word"][target], None, 0
        near = self.near[word]
        words = (
            [other for other in self.ranked[word] if other in pool]
            if len(near) < len(pool)
            else [other for other in pool if other in near]
        )
        for other in words:
            partner = self._ready(target, pool[other])
            if partner is None:
                continue
            cost = 0 if len(rules.same) > 3 else self._cost(target, partner)
            if cost <= rules.cost and (best is None or cost < best[0]):
                best = cost, target, partner
            weighed += 1
            if weighed >= rules.most or (best and best[0] <= 0):
                break
        return best

    def _ready(self, target: int, stack: list[int]) -> int | None:
        """Return a target that waits in a stack and whose text may have this target's word, and the
        reverse; drop those served since.
        """
        text, word = self.columns["text"], self.columns["word"]
        while stack and self.served[text[stack[-1]]]:
            stack.pop()
        for partner in reversed(stack[-DEEP:]):
            there = text[partner]
            if (
                not self.served[there]
                and word[target] not in self.forbids[there]
                and word[partner] not in self.forbids[text[target]]
            ):
                return partner
        return None

    def _changes(self, one: int, two: int) -> dict[tuple[int, int], int]:
        """Return by how much an exchange changes how often each pair of neighbouring tokens was
        brought in.
        """
        token, left, right = self.columns["token"], self.columns["left"], self.columns["right"]
        changes: dict[tuple[int, int], int] = {}
        for target, other in ((one, two), (two, one)):
            for brought, sign in ((token[other], 1), (token[target], -1)):
                for pair in ((left[target], brought), (brought, right[target])):
                    changes[pair] = changes.get(pair, 0) + sign
        return changes

    def _cost(self, one: int, two: int) -> int:
        """Return by how much an exchange changes the sum over pairs of tokens of net^2."""
        net = self.net
        return sum(
            change * (change + 2 * net.get(pair, 0))
            for pair, change in self._changes(one, two).items()
            if change
        )

    def _pair(self, one: int, two: int) -> None:
        text = self.columns["text"]
        for pair, change in self._changes(one, two).items():
            self.net[pair] = self.net.get(pair, 0) + change
        for target, other in ((one, two), (two, one)):
            self.partner[target], self.served[text[target]] = other, True
