"""The tables of WordNet in memory, and the relations of words and synsets that they hold."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miner.errors import UserError

KINDS = {"NOUN": "n", "PROPN": "n", "VERB": "v", "ADJ": "a", "NUM": "a", "ADV": "r"}
NAMED = 2  # senses by which a word is known
# Fields where the end of a compound says little: a sea lion is none, nor iron blue any blue.
OTHERWISE_NAMED = ("noun.animal", "noun.plant", "noun.attribute")
Name = TypeVar("Name")
# Families of adjectives that exclude each other: heads whose satellites do (any other head's say
# more or less the same), heads that do.
FAMILIES = (
    (("chromatic", "achromatic"), ("black", "white")),
    *(
        ((name,), ())
        for name in ("patterned", "cardinal", "ordinal", "cooked", "preserved", "formed")
    ),
)


class Rows:
    """A list of numbers for each row, kept flat."""

    def __init__(self, starts: np.ndarray, values: np.ndarray):
        self.starts, self.values = starts.tolist(), values.tolist()

    def __getitem__(self, row: int) -> list[int]:
        return self.values[self.starts[row] : self.starts[row + 1]]

    @classmethod
    def of_pairs(cls, rows: np.ndarray, values: np.ndarray, n: int) -> "Rows":
        """Gather the values of each row, in ascending order of value, of n rows."""
        order = np.lexsort((values, rows))
        return cls(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]), values[order])


class Relations:
    """The tables of `data/wordnet`, read once, and each relation, gathered when it is first asked
    for. Words and synsets are numbers: rows of their tables.

    Args:
        folder: where words.parquet, synsets.parquet and links.parquet lie.

    Raises:
        UserError: a table is missing.
    """

    def __init__(self, folder: Path):
        try:
            words, synsets, self._link_table = (
                pq.read_table(folder / f"{name}.parquet") for name in ("words", "synsets", "links")
            )
        except FileNotFoundError as error:
            raise UserError(
                f"no WordNet in {folder}; expected words.parquet, synsets.parquet, links.parquet:"
                " data/build_wordnet.py makes them"
            ) from error
        # by way of NumPy: to_pylist takes 0.3 s for the dictionary column
        self.lemmas: list[str] = words["lemma"].to_numpy().tolist()
        self._cased: list[bool] = words["cased"].to_numpy().tolist()
        self._forms = words["forms"].combine_chunks()
        self._fields: list[str] = synsets["field"].to_numpy().tolist()
        self._satellite: list[bool] = synsets["satellite"].to_numpy().tolist()
        pos = words["pos"].to_numpy().tolist()
        self._ranges = {
            kind: range(bisect_left(pos, kind), bisect_right(pos, kind))
            for kind in sorted(set(KINDS.values()))
        }
        self._numbers = {
            kind: dict(zip(self.lemmas[its.start : its.stop], its, strict=True))
            for kind, its in self._ranges.items()
        }
        self._synsets = synsets.combine_chunks()
        self._senses, self._members = _both_ways(words["senses"], len(synsets))

    @cached_property
    def _named(self) -> tuple[Rows, ...]:
        """Synset -> the words whose first sense it is; whose second; as far as NAMED goes."""
        starts, sense = np.array(self._senses.starts), np.array(self._senses.values)
        words = np.repeat(np.arange(len(self.lemmas)), np.diff(starts))
        rank = np.arange(len(sense)) - starts[words]
        return tuple(
            Rows.of_pairs(sense[rank == place], words[rank == place], len(self._synsets))
            for place in range(NAMED)
        )

    @cached_property
    def _hypernyms(self) -> Rows:
        return _row_numbers(self._synsets["hypernyms"])

    @cached_property
    def _hyponyms(self) -> Rows:
        return _both_ways(self._synsets["hypernyms"], len(self._synsets))[1]

    @cached_property
    def _genus(self) -> Rows:
        """Synset -> the first senses of the words that its gloss says it is."""
        starts, words = _flattened(self._synsets["genus"])
        first = np.array(self._senses.starts)[words]
        return Rows(starts, np.array(self._senses.values)[first])

    @cached_property
    def _has(self) -> Rows:
        return Rows.of_pairs(*self._having, len(self._synsets))

    @cached_property
    def _wholes(self) -> Rows:
        rows, values = self._having
        return Rows.of_pairs(values, rows, len(self._synsets))

    @cached_property
    def _having(self) -> tuple[np.ndarray, np.ndarray]:
        return _link_pairs(self._synsets, ["parts", "entails", "causes"])

    @cached_property
    def _similar(self) -> Rows:
        return self._symmetric("similar")

    @cached_property
    def _also(self) -> Rows:
        return self._symmetric("also")

    def _symmetric(self, relation: str) -> Rows:
        """Gather a relation of synsets; its links of single senses, a handful, count for the
        whole synset.
        """
        rows, values = _link_pairs(self._synsets, [relation])
        one, two = self._links(relation)[:, [1, 3]].T
        return Rows.of_pairs(
            np.concatenate([rows, one, two]), np.concatenate([values, two, one]), len(self._synsets)
        )

    @cached_property
    def _attributes(self) -> Rows:
        return Rows.of_pairs(*_link_pairs(self._synsets, ["attributes"]), len(self._synsets))

    @cached_property
    def _stems(self) -> Rows:
        """Word -> words by derivation or pertainym, either way."""
        links = np.concatenate([self._links("derivation"), self._links("pertainym")])
        return Rows.of_pairs(
            np.concatenate([links[:, 0], links[:, 2]]),
            np.concatenate([links[:, 2], links[:, 0]]),
            len(self.lemmas),
        )

    @cached_property
    def _compounds(self) -> dict[int, list[int]]:
        """Noun -> nouns of its field that a compound ties to it: both end names of one thing
        (patrol boat, patrol ship), or one ends the name of what the other is above (a dunce cap
        is a hat).
        """
        nouns, pairs = self._numbers["n"], list[tuple[int, int]]()
        for synset, field in enumerate(self._fields):
            if field in OTHERWISE_NAMED or not field.startswith("noun."):
                continue
            ends: dict[str, set[int]] = {}
            for number in self._members[synset]:
                before, _, last = self.lemmas[number].rpartition(" ")
                if before and self._is_first(nouns.get(last), field):
                    ends.setdefault(before, set()).add(nouns[last])
            above = {
                number
                for hypernym in self._hypernyms[synset]
                for number in self._members[hypernym]
                if self._fields[hypernym] == field and hypernym in self._senses[number][:NAMED]
            }
            for heads in ends.values():
                pairs += permutations(heads, 2)
                for head, one in product(heads, above):
                    pairs += [(head, one), (one, head)]
        return _grouped(pairs)

    def _is_first(self, number: int | None, field: str) -> bool:
        """Return whether the first sense of a word, if there is one, is of a field."""
        return number is not None and self._fields[self._senses[number][0]] == field

    @cached_property
    def _derived(self) -> dict[int, list[int]]:
        """Word -> synsets of the senses it is derived from or that are derived from it."""
        links = self._links("derivation")
        return _grouped(np.concatenate([links[:, [0, 3]], links[:, [2, 1]]]).tolist())

    @cached_property
    def _from(self) -> Rows:
        """Synset -> words derived from one of its senses, or from which one is derived."""
        pairs = [(synset, word) for word, synsets in self._derived.items() for synset in synsets]
        words, values = np.array(pairs, np.int64).reshape(-1, 2).T
        return Rows.of_pairs(words, values, len(self._synsets))

    @cached_property
    def _adjectives(self) -> dict[int, list[int]]:
        """Synset -> adjectives by derivation."""
        return _grouped(
            (synset, word)
            for word, synsets in self._derived.items()
            if word in self._ranges["a"]
            for synset in synsets
        )

    @cached_property
    def _antonyms(self) -> dict[tuple[int, int], list[int]]:
        """(word, synset) -> words."""
        links = self._links("antonym").tolist()
        return _grouped(pair for a, x, b, y in links for pair in (((a, x), b), ((b, y), a)))

    @cached_property
    def _opposite(self) -> dict[int, list[int]]:
        """Synset -> synsets that hold an antonym of one of its words."""
        links = self._links("antonym").tolist()
        return _grouped(pair for _, x, _, y in links for pair in ((x, y), (y, x)))

    @cached_property
    def _pertains(self) -> dict[tuple[int, int], list[int]]:
        """(adjective, synset) -> synsets of the nouns it pertains to."""
        return _grouped(((a, x), y) for a, x, _, y in self._links("pertainym").tolist())

    @cached_property
    def _pertainers(self) -> dict[int, list[int]]:
        """Synset of a noun -> the adjectives that pertain to it by one of their first senses."""
        rows = [
            (y, a)
            for a, x, _, y in self._links("pertainym").tolist()
            if x in self._senses[a][:NAMED] and a in self._ranges["a"]
        ]
        return _grouped(rows)

    def _closure(self, seeds: Iterable[int], rows: Rows) -> set[int]:
        """Return the seeds and all that is reached from them."""
        seen = set(seeds)
        todo = list(seen)
        while todo:
            for synset in rows[todo.pop()]:
                if synset not in seen:
                    seen.add(synset)
                    todo.append(synset)
        return seen

    def _reach(self, seeds: Iterable[int], rows: Rows) -> set[int]:
        """Return what is reached from the seeds in one step."""
        return {synset for seed in seeds for synset in rows[seed]}

    def _heads(self, synset: int) -> list[int]:
        """Return the heads of a satellite; a head is its own."""
        return (
            [head for head in self._similar[synset] if not self._satellite[head]]
            if self._satellite[synset]
            else [synset]
        )

    def _satellites(self, head: int) -> list[int]:
        return [synset for synset in self._similar[head] if self._satellite[synset]]

    @cached_property
    def _family(self) -> dict[int, int]:
        """Head -> number of its family."""
        known = self._numbers["a"]
        return {
            self._head(name): family
            for family, names in enumerate(FAMILIES)
            for name in (*names[0], *names[1])
            if name in known
        }

    def _head(self, name: str) -> int:
        """Return that sense of an adjective which has the most satellites, the first on a tie."""
        return max(
            self._senses[self._numbers["a"][name]], key=lambda synset: len(self._satellites(synset))
        )

    def _links(self, relation: str) -> np.ndarray:
        """Return (n, 4) int64: word, synset, other word, other synset."""
        chosen = self._link_table.filter(
            pc.equal(self._link_table["relation"].cast(pa.string()), relation)
        )
        return np.stack(
            [chosen[name].to_numpy() for name in ("word", "synset", "other_word", "other_synset")],
            axis=1,
        ).astype(np.int64)


def _flattened(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each row's list starts, the end last, and the values."""
    lists = column.combine_chunks()
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def _row_numbers(column: pa.ChunkedArray) -> Rows:
    return Rows(*_flattened(column))


def _both_ways(column: pa.ChunkedArray, n: int) -> tuple[Rows, Rows]:
    """Return the lists of a column, and for each of n values the rows whose lists hold it."""
    starts, values = _flattened(column)
    return Rows(starts, values), Rows.of_pairs(
        values, np.repeat(np.arange(len(starts) - 1), np.diff(starts)), n
    )


def _link_pairs(table: pa.Table, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and values of some list columns, one under the other."""
    flat = [_flattened(table[name]) for name in names]
    rows = [np.repeat(np.arange(len(starts) - 1), np.diff(starts)) for starts, _ in flat]
    return np.concatenate(rows), np.concatenate([values for _, values in flat])


def _grouped(pairs: Iterable[tuple[Name, int]]) -> dict[Name, list[int]]:
    """Gather the values of each key, once each, ascending."""
    found: dict[Name, set[int]] = {}
    for key, value in pairs:
        found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in found.items()}
