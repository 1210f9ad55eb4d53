"""Count replacements in made documents that WordNet calls synonym, hypernym, hyponym or inflection
of the old word; none should be.

    python bench/check_substitutions.py oewn-yaml.tar.gz RUN/3_candidates/substitute/_documents

It reads the YAML itself and shares no code with what it checks. A noun's senses count for route O,
an adjective's for A, a verb's for R, all of them where no route is said; every sense, whichever is
meant, and hypernyms at any distance. A word is taken by the lemma that it was made with, if WordNet
has it, else by every lemma that it may be a form of; and as it stands. Exits with 1 if any offence
is found, with 2 if there is nothing to check.
"""

import argparse
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import yaml

KINDS = {"O": "n", "A": "a", "R": "v"}
UPOS = {"n": ("NOUN", "PROPN"), "a": ("ADJ",), "v": ("VERB",), "r": ("ADV",)}
ENDINGS = (
    ("ies", "y"),
    ("ied", "y"),
    ("ier", "y"),
    ("iest", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("ing", "e"),
    ("d", ""),
    ("r", ""),
    ("st", ""),
)
ENDINGS += tuple((ending, "") for ending in ("s", "es", "ed", "ing", "er", "est"))


class Senses:
    """Every synset of a word, and every synset above it, from the YAML."""

    def __init__(self, file):
        self.of, self.parents = defaultdict(set), {}
        with tarfile.open(file) as tar:
            for member in sorted(
                (one for one in tar.getmembers() if one.name.endswith(".yaml")),
                key=lambda one: one.name,
            ):
                name = Path(member.name).name
                if name.startswith("frames"):
                    continue
                content = yaml.load(tar.extractfile(member), Loader=yaml.CSafeLoader)
                if name.startswith("entries"):
                    self._add_words(content)
                else:
                    self.parents |= {
                        key: [*synset.get("hypernym", []), *synset.get("instance_hypernym", [])]
                        for key, synset in content.items()
                    }

    def _add_words(self, entries):
        for word, by_pos in entries.items():
            for pos, entry in by_pos.items():
                self.of[word.lower(), pos[0]] |= {sense["synset"] for sense in entry["sense"]}

    def above(self, synsets):
        """Return the synsets and all their hypernyms."""
        seen, todo = set(synsets), list(synsets)
        while todo:
            new = [parent for parent in self.parents[todo.pop()] if parent not in seen]
            seen.update(new)
            todo += new
        return seen


def lemmas(word, kind):
    """Return what a word may be a form of, itself included: by lemminflect, or by endings where
    it is not installed.
    """
    *first, last = word.lower().split()
    try:
        from lemminflect import getAllLemmas
    except ImportError:
        found = {
            last.removesuffix(end) + instead
            for end, instead in ENDINGS
            if last.endswith(end) and len(last) > len(end) + 2
        }
        found |= {one[:-1] for one in found if len(one) > 3 and one[-1] == one[-2]}
    else:
        found = {
            one.lower()
            for upos in UPOS[kind]
            for some in getAllLemmas(last, upos=upos).values()
            for one in some
        }
    return {" ".join([*first, one]) for one in {last, *found}}


def verdicts(old, new, kind, senses):
    """Return what one set of words is of another as this kind: synonym, hypernym, hyponym."""
    one = {synset for word in old for synset in senses.of.get((word, kind), ())}
    two = {synset for word in new for synset in senses.of.get((word, kind), ())}
    if one & two:
        return ["synonym"]
    return [
        *(["hypernym"] if senses.above(one) & two else []),
        *(["hyponym"] if senses.above(two) & one else []),
    ]


def read_as(detail, side, kind, senses):
    """Return the lemmas of the old or the new word: the one it was made with where WordNet has
    that, else all that its form may have.
    """
    lemma = str(detail.get(f"{side}_lemma") or "").lower()
    return (
        {lemma}
        if (lemma, kind) in senses.of
        else lemmas(detail[side], kind) | ({lemma} if lemma else set())
    )


def judge(detail, senses):
    """Return what is wrong with one replacement, a list of words."""
    found = set()
    for kind in [KINDS[detail["route"]]] if detail.get("route") in KINDS else sorted(UPOS):
        old, new = (read_as(detail, side, kind, senses) for side in ("old", "new"))
        # glasses are no glass: as it stands, a form may be a word of its own
        found.update(
            verdicts({*old, detail["old"].lower()}, {*new, detail["new"].lower()}, kind, senses)
        )
        if old & new or detail["old"].lower() == detail["new"].lower():
            found.add("inflection")
    return sorted(found)


def main():
    """Read the command line, count, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wordnet", type=Path, help="tar of Open English WordNet's YAML files")
    parser.add_argument(
        "documents",
        type=Path,
        help=(
            "folder of Parquet files with a column `detail` (old, new, and lemmas and route if"
            " there)"
        ),
    )
    parser.add_argument("--show", type=int, default=20, help="offenders to print")
    options = parser.parse_args()
    files = sorted(options.documents.rglob("*.parquet"))
    rows = Counter()
    for file in files:
        for detail in pq.read_table(file, columns=["detail"])["detail"].to_pylist():
            if detail and detail.get("old") and detail.get("new"):
                rows[
                    tuple(
                        (name, detail.get(name))
                        for name in ("old", "new", "old_lemma", "new_lemma", "route")
                    )
                ] += 1
    if not rows:
        print(
            f"no replacements in {options.documents} ({len(files)} Parquet files)", file=sys.stderr
        )
        return 2
    senses, counts, offenders = Senses(options.wordnet), Counter(), []
    for row, times in rows.items():
        wrong = judge(dict(row), senses)
        counts.update(dict.fromkeys(wrong, times))
        offenders += [(dict(row), times, wrong)] if wrong else []
    print(f"{rows.total()} replacements, {len(rows)} different")
    for name in ("synonym", "hypernym", "hyponym", "inflection"):
        print(f"{name:<10} {counts[name]}")
    for detail, times, wrong in offenders[: options.show]:
        print(
            f"  {detail['old']} -> {detail['new']} (route {detail['route']}, {times} times):"
            f" {', '.join(wrong)}"
        )
    return 1 if offenders else 0


if __name__ == "__main__":
    sys.exit(main())
