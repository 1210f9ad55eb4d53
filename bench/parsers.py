"""The bundled parser beside another spaCy model: accuracy on the test part of UD English EWT, speed
on COCO captions, and how many of them `swap` changes.

    python bench/parsers.py en_core_web_sm        # an installed model, or a folder with one

Accuracy is on the treebank's own words, one sentence a document. Labels of dependencies are not
compared, for en_core_web_* has its own, and heads only for what they are worth: it hangs a noun on
its preposition, the treebank the preposition on the noun. The result goes to
bench/results/parsers.json.
"""

import argparse
import json
from itertools import chain
from pathlib import Path
from typing import Any

from parts.substitution import CAPTIONS, DATA
from sides import machine, seconds_of, write_result

RESULT = Path(__file__).parent / "results" / "parsers.json"
TREEBANK = DATA / "ud-english-ewt" / "en_ewt-ud-test.conllu"


def treebank() -> list[list[list[str]]]:
    """Return sentences of words of columns (CoNLL-U), without multi-word tokens and empty nodes."""
    sentences = TREEBANK.read_text("utf-8").strip().split("\n\n")
    rows = [[line.split("\t") for line in one.splitlines() if line[0] != "#"] for one in sentences]
    return [[row for row in one if row[0].isdigit()] for one in rows]


def accuracy(name: str) -> dict[str, float]:
    """Return shares of words whose universal part of speech, Penn tag, lemma and head are right."""
    import spacy
    from spacy.tokens import Doc

    from miner.words.data_files import data_file
    from miner.words.parsing import BUNDLED

    nlp = spacy.load(data_file(BUNDLED) if name == BUNDLED else name, exclude=["ner"])
    sentences = treebank()
    docs = [
        Doc(nlp.vocab, [row[1] for row in one], ["SpaceAfter=No" not in row[9] for row in one])
        for one in sentences
    ]
    right = dict.fromkeys(("upos", "tag", "lemma", "head"), 0)
    for doc, one in zip(nlp.pipe(docs), sentences, strict=True):
        for token, row in zip(doc, one, strict=True):
            head = 0 if token.head.i == token.i else token.head.i + 1
            right["upos"] += token.pos_ == row[3]
            right["tag"] += token.tag_ == row[4]
            right["lemma"] += token.lemma_.lower() == row[2].lower()
            right["head"] += str(head) == row[6]
    total = len(list(chain.from_iterable(sentences)))
    return {name: round(100 * count / total, 2) for name, count in right.items()}


def on_captions(name: str, count: int) -> dict[str, Any]:
    """Return captions a second, and the share of them in which two phrases change places."""
    from miner.words.parsing import load_parser
    from miner.words.swap import swap

    found = json.loads(CAPTIONS.read_text("utf-8"))["annotations"][:count]
    texts, parsed = [one["caption"].strip() for one in found], list[Any]()
    parse = load_parser(name)
    list(parse(texts[:50]))  # loaded before the clock starts
    seconds = seconds_of(lambda: parsed.extend(parse(texts)))
    changed = sum(
        swap(text, one, 0, 0, str(number)) is not None
        for number, (text, one) in enumerate(zip(texts, parsed, strict=True))
    )
    return {
        "captions": len(texts),
        "captions_a_second": round(len(texts) / seconds, 1),
        "swapped": round(changed / len(texts), 4),
    }


def main() -> None:
    """Measure each model and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="an installed spaCy model, or a folder with one")
    parser.add_argument("--captions", type=int, default=5000, help="captions to parse")
    options = parser.parse_args()
    names = {"en_quarry": "en_quarry", Path(options.model).name: options.model}
    models = {
        shown: accuracy(name) | on_captions(name, options.captions) for shown, name in names.items()
    }
    write_result(RESULT, {"parsers": {"machine": machine(), "models": models}})
    print(json.dumps(models, indent=1))


if __name__ == "__main__":
    main()
