"""Open English WordNet (a tar of its YAML) -> three small tables of words and their relations.

    python data/build_wordnet.py oewn-yaml.tar.gz

    words.parquet     one row per lowercased lemma and part of speech, its synsets in sense order;
                      the row is the word's number
    synsets.parquet   one row per synset; the row is the synset's number
    links.parquet     what holds between two senses: antonym, derivation, pertainym, also, similar

Of a gloss only what it says the thing is remains ("a very young child": child), as words. Examples,
pronunciations and sense keys are left out. The same input gives the same bytes
(under one version of pyarrow).
"""

import argparse
import re
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

NUMBERS = pa.list_(pa.field("item", pa.int32(), nullable=False))
NAMES = pa.dictionary(pa.int8(), pa.string())
WORDS = pa.schema(
    [
        pa.field("pos", NAMES, nullable=False),  # n, v, a (satellites too), r
        pa.field("lemma", pa.string(), nullable=False),  # lowercased; several words with spaces
        pa.field("cased", pa.bool_(), nullable=False),  # written with a capital in every entry
        pa.field("senses", NUMBERS, nullable=False),  # of the lowercased entry first
        # irregular inflections, as far as the entries list them
        pa.field("forms", pa.list_(pa.string()), nullable=False),
    ]
)
# relation of synsets -> the YAML's names for it, all from the synset to the other
RELATIONS = {
    "hypernyms": ("hypernym", "instance_hypernym"),
    "parts": ("mero_part", "mero_substance", "mero_member", "mero_portion", "mero_location"),
    "entails": ("entails",),
    "causes": ("causes",),
    "similar": ("similar",),
    "also": ("also",),
    "attributes": ("attribute",),
}
SYNSETS = pa.schema(
    [
        pa.field("field", NAMES, nullable=False),  # lexicographer file, such as noun.food
        pa.field("satellite", pa.bool_(), nullable=False),  # an adjective that hangs on a head
        *(pa.field(name, NUMBERS, nullable=False) for name in RELATIONS),
        pa.field("genus", NUMBERS, nullable=False),  # words: what the gloss says that it is
    ]
)
LINKS = pa.schema(
    [
        pa.field("relation", NAMES, nullable=False),
        *(
            pa.field(name, pa.int32(), nullable=False)
            for name in ("word", "synset", "other_word", "other_synset")
        ),
    ]
)
# relations of senses -> ours; an event, agent, result… of a verb is a derivation that says in what
# role
ROLES = (
    "event",
    "agent",
    "result",
    "by_means_of",
    "undergoer",
    "instrument",
    "uses",
    "state",
    "property",
    "location",
    "material",
    "vehicle",
)
DERIVED = ("derivation", *ROLES, "body_part", "destination", "participle")
LINKED = {
    "antonym": "antonym",
    "pertainym": "pertainym",
    "also": "also",
    "similar": "similar",
    **dict.fromkeys(DERIVED, "derivation"),
}
Yaml: TypeAlias = dict[str, Any]
Words: TypeAlias = dict[tuple[str, str], list[tuple[str, Yaml]]]

# Of glosses: what ends the first noun phrase; heads that say nothing, of which what follows "of" is
# the head; words that say nothing of what a thing is; adverbs of degree.
AFTER = re.compile(
    "that|which|who|whose|whom|with|of|for|in|on|to|used|having|by|from|as|at|made|where|when"
    "|without|than|into|between|through|during|around|over|under|against|is|are|was|usually"
    "|especially|often|not|about|along|after|before|upon|within|toward|towards|near|above|below"
    "|like|such|containing|including|worn"
)
HOLLOW = re.compile(
    "kind|type|sort|variety|any|several|number|set|quantity|act|instance|example|collection|each"
    "|pair|group|terms?|names?|words?"
)
EMPTY = re.compile(
    HOLLOW.pattern + "|one|form|piece|members?|part|class|species|genus|family|state|quality"
    "|amount|unit|portion|be|make|have|do|give|take|cause|put|get|go|become|come|bring|keep|let"
    "|use|act|show|provide|move|things?|something|someone|place|way|or|and"
)
PLANTS = re.compile(r"\b(flower|fruit|tree|shrub|herb|grass|vine|nut|berry)(?:s|ies)?\b")
DEGREES = re.compile(
    "very|extremely|quite|having|somewhat|unusually|relatively|exceedingly|completely|slightly"
    "|especially|rather"
)


def read_yaml(file: Path) -> tuple[Yaml, Yaml]:
    """Return the entries (lemma -> part of speech -> entry) and the synsets (id -> synset, with
    its `field`) of a tar of YAML files.
    """
    entries: Yaml = {}
    synsets: Yaml = {}
    with tarfile.open(file) as tar:
        for name, member in sorted(
            (Path(member.name).name, member)
            for member in tar.getmembers()
            if member.name.endswith(".yaml")
        ):
            stem, stream = name.removesuffix(".yaml"), tar.extractfile(member)
            if stem.startswith("entries-"):
                entries.update(yaml.load(stream, Loader=yaml.CSafeLoader))
            elif stem.partition(".")[0] in ("noun", "verb", "adj", "adv"):
                synsets.update(
                    {
                        key: synset | {"field": stem}
                        for key, synset in yaml.load(stream, Loader=yaml.CSafeLoader).items()
                    }
                )
    if not entries or not synsets:
        raise SystemExit(
            f"{file}: expected entries-*.yaml and noun.*, verb.*, adj.*, adv.* yaml files"
        )
    return entries, synsets


def gather(entries: Yaml) -> Words:
    """Return (part of speech, lowercased lemma) -> its entries (lemma as written, entry):
    lowercase before capitals, n-1 before n-2.
    """
    words: Words = {}
    for lemma in sorted(entries, key=lambda lemma: (lemma != lemma.lower(), lemma)):
        for pos in sorted(entries[lemma]):
            words.setdefault((pos[0], lemma.lower()), []).append((lemma, entries[lemma][pos]))
    return dict(sorted(words.items()))


def word_table(words: Words, numbers: dict[str, int]) -> pa.Table:
    """Return the table of words; `numbers` gives a synset's number."""
    senses = [
        _once(numbers[sense["synset"]] for _, entry in group for sense in entry["sense"])
        for group in words.values()
    ]
    forms = [
        _once(form for _, entry in group for form in entry.get("form", ()))
        for group in words.values()
    ]
    cased = [all(lemma != lemma.lower() for lemma, _ in group) for group in words.values()]
    return _table(
        [[pos for pos, _ in words], [lemma for _, lemma in words], cased, senses, forms], WORDS
    )


def synset_table(synsets: Yaml, numbers: dict[str, int], words: Words) -> pa.Table:
    """Return the table of synsets, in the order of `numbers`."""
    place = {word: number for number, word in enumerate(words)}
    rows = [synsets[key] for key in numbers]
    related = [
        [_once(numbers[key] for name in names for key in row.get(name, ())) for row in rows]
        for names in RELATIONS.values()
    ]
    kinds = ["a" if row["partOfSpeech"] == "s" else row["partOfSpeech"] for row in rows]
    genus = [
        _once(place[kind, word] for word in genus_of(row, kind, place))
        for row, kind in zip(rows, kinds, strict=True)
    ]
    fields, satellite = (
        [row["field"] for row in rows],
        [row["partOfSpeech"] == "s" for row in rows],
    )
    return _table([fields, satellite, *related, genus], SYNSETS)


def genus_of(synset: Yaml, kind: str, known: Collection[tuple[str, str]]) -> list[str]:
    """Return the words that a gloss begins with as what the thing is: heads of its first noun
    phrase, its first verbs, or all of it where it is nothing but adjectives; and the flower, fruit
    or tree of a plant, which is called by either.

    >>> known = {("n", "child"), ("v", "run"), ("v", "rush"), ("a", "bright"), ("a", "pleasant")}
    >>> genus_of({"definition": ["a very young child (to 1 year) who cannot walk"]}, "n", known)
    ['child']
    >>> genus_of({"definition": ["run or rush hastily"]}, "v", known)
    ['run', 'rush']
    >>> genus_of({"definition": ["bright and pleasant; promoting cheer"]}, "a", known)
    ['bright', 'pleasant']
    """
    gloss = "".join(synset.get("definition", [])[:1]).lower()
    text = re.split("[;:,]", re.sub(r"\([^)]*\)", "", gloss).strip())[0]
    tokens = re.findall(r"[a-z][a-z'-]*", text)
    if kind == "n":
        found = [_singular(word, known) for word in _heads(tokens, known)]
        found += PLANTS.findall(gloss) if synset.get("field") == "noun.plant" else []
    elif kind == "v":
        found = _first_verbs(tokens, known)
    else:
        found = [one for one in tokens if not DEGREES.fullmatch(one)]
        listed = len(found) < 2 or bool({"and", "or"} & set(found))
        found = [one for one in found if one not in ("and", "or")]
        if kind == "r" or not listed or not all((kind, one) in known for one in found):
            return []
    return [one for one in found if (kind, one) in known and not EMPTY.fullmatch(one)]


def _heads(tokens: list[str], known: Collection[tuple[str, str]]) -> list[str]:
    """Return the last word of each noun of the first noun phrase; of "a kind of boat", boat."""
    head: list[str] = []
    tokens = [token for token in tokens if token not in ("a", "an", "the")]
    for place, token in enumerate(tokens):
        clause = token.endswith(("ed", "ing")) and ("n", head[-1] if head else "") in known
        if token in ("of", "for") and head and HOLLOW.fullmatch(head[-1]):
            return _heads(tokens[place + 1 :], known)
        if AFTER.fullmatch(token) or (clause and ("n", token) not in known):
            break
        if clause and token.endswith("ing"):
            break
        head.append(token)
    ends = [place for place, token in enumerate(head) if token in ("and", "or")] + [len(head)]
    # of "human being" both, the compound and its head
    pairs = [" ".join(head[end - 2 : end]) for end in ends if end > 1]
    return [*pairs, *(head[end - 1] for end in ends if end)]


def _first_verbs(tokens: list[str], known: Collection[tuple[str, str]]) -> list[str]:
    """Return the verbs that a gloss begins with: run of "run or rush hastily", and rush."""
    tokens, found = tokens[tokens[:1] == ["to"] :], []
    for place in range(0, len(tokens), 2):
        if place and tokens[place - 1] not in ("and", "or"):
            break
        if ("v", tokens[place]) not in known:
            break
        found.append(tokens[place])
    return found


def _singular(word: str, known: Collection[tuple[str, str]]) -> str:
    return word if ("n", word) in known else word.removesuffix("s")


def link_table(words: Words, numbers: dict[str, int]) -> pa.Table:
    """Return the table of links; all but pertainyms hold both ways and are kept once, the
    smaller pair first.
    """
    senses = [
        (word, sense)
        for word, group in enumerate(words.values())
        for _, entry in group
        for sense in entry["sense"]
    ]
    place = {sense["id"]: (word, numbers[sense["synset"]]) for word, sense in senses}
    links = set()
    for word, sense in senses:
        here = (word, numbers[sense["synset"]])
        for name, relation in LINKED.items():
            for there in (place[key] for key in sense.get(name, ())):
                one, two = (here, there) if relation == "pertainym" else sorted((here, there))
                links.add((relation, *one, *two))
    rows = sorted(links)
    return _table([[row[column] for row in rows] for column in range(len(LINKS))], LINKS)


def build(file: Path) -> dict[str, pa.Table]:
    """Return the three tables by name."""
    entries, synsets = read_yaml(file)
    numbers = {
        key: number
        for number, key in enumerate(sorted(synsets, key=lambda key: (synsets[key]["field"], key)))
    }
    words = gather(entries)
    return {
        "words": word_table(words, numbers),
        "synsets": synset_table(synsets, numbers, words),
        "links": link_table(words, numbers),
    }


def write(tables: dict[str, pa.Table], folder: Path) -> None:
    """Write the tables as Parquet (zstd)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        text = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
        pq.write_table(
            table,
            folder / f"{name}.parquet",
            compression="zstd",
            compression_level=19,
            use_dictionary=text,
        )


def _once(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _table(columns: list[list[Any]], schema: pa.Schema) -> pa.Table:
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        encoded = (
            pa.array(column).dictionary_encode().cast(field.type)
            if pa.types.is_dictionary(field.type)
            else pa.array(column, field.type)
        )
        arrays.append(encoded)
    return pa.table(arrays, schema=schema)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, build, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "file", type=Path, help="tar of the YAML files of Open English WordNet (src/yaml)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "wordnet",
        help="folder to write the three tables in",
    )
    options = parser.parse_args(arguments)
    write(build(options.file), options.out)


if __name__ == "__main__":
    main()
