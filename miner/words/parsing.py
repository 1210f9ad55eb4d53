"""texts -> words with lemma, part of speech, head and place, by a spaCy model: an installed one, or
en_quarry, which comes with quarry.

`data/train_en_quarry.py` trains en_quarry. spaCy is imported only where a model is loaded.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from miner.errors import UserError
from miner.files import file_fingerprint
from miner.words.data_files import data_file

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

BUNDLED = "en_quarry"
# What auto takes, the first that is installed. trf comes last: without a GPU it reads some hundred
# words a second, the others thousands.
PREFERRED = ("en_core_web_md", "en_core_web_lg", "en_core_web_sm", "en_core_web_trf")
NEEDED = ("POS", "TAG", "LEMMA", "DEP")
UNUSED = ["ner"]
PROBE = "A man rides a wave."
# characters of a text that are read: spaCy takes a minute for as many brackets in a row
LONGEST = 20_000
BATCH = 256  # texts that spaCy takes at once; what is made of a text does not depend on it


class Parsed(NamedTuple):
    """The tokens of a text, lists of one length; `word` and `space` joined in turn give the text
    (as far as it was read).

    Attributes:
        word: as it stands in the text; runs of white space beyond one space are tokens too (pos
            SPACE).
        lemma: dictionary form.
        pos: universal part of speech (NOUN, ADP, ...).
        tag: part of speech of the Penn Treebank (NNS, VBZ, ...).
        start: character at which the word begins.
        space: " " or "", what follows the word.
        head: token that this one depends on; the root of a sentence is its own.
        dep: how it depends. en_quarry speaks Universal Dependencies (obl, nmod:poss); en_core_web_*
            have labels of their own (pobj, poss).
        stop: whether spaCy lists it as a stop word.
        sentence: which sentence of the text it stands in, from 0.
    """

    word: list[str]
    lemma: list[str]
    pos: list[str]
    tag: list[str]
    start: list[int]
    space: list[str]
    head: list[int]
    dep: list[str]
    stop: list[bool]
    sentence: list[int]


Parse = Callable[[Sequence[str]], Iterator[Parsed]]


def load_parser(name: str = "auto", longest: int = LONGEST) -> Parse:
    """Return a function that parses texts, one `Parsed` for each, in their order.

    Args:
        name: an installed spaCy model, a folder with one, en_quarry, or auto (en_core_web_* if
            installed, else en_quarry).
        longest: characters that are read of a text; what follows is left out.

    Raises:
        UserError: there is no such model, or it does not give what is needed.
    """
    nlp = _load_spacy(_resolve(name))

    def parse(texts: Sequence[str]) -> Iterator[Parsed]:
        for doc in nlp.pipe((text[:longest] for text in texts), batch_size=BATCH):
            yield _parsed(doc)

    return parse


def parser_fingerprint(name: str = "auto") -> str:
    """Return the name and version of a model with 16 hex digits of its files, as in `en_quarry
    0.1.0 5e6a...`.

    Raises:
        UserError: there is no such model.
    """
    found = _resolve(name)
    folder = _model_folder(found)
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_fingerprint(path)}\n".encode())
    return f"{folder.name} {_spacy_version(found, folder)} {digest.hexdigest()}"


def _resolve(name: str) -> str:
    """Return what stands for a name: an installed package, or the path of a folder.

    Raises:
        UserError: there is no such model.
    """
    if name == "auto":
        name = next((package for package in PREFERRED if _installed(package)), BUNDLED)
    if _installed(name):
        return name
    folder = data_file(BUNDLED) if name == BUNDLED else Path(name)
    if (folder / "config.cfg").is_file():
        return str(folder)
    found = f"folder {name!r} without config.cfg" if folder.is_dir() else f"no spaCy model {name!r}"
    expected = f"expected auto, {BUNDLED}, an installed model or a folder saved by spaCy"
    raise UserError(
        f"--spacy-model: {found}; {expected}; try python -m spacy download {PREFERRED[2]}"
    )


def _installed(name: str) -> bool:
    """Say whether a name is that of an installed package with a spaCy model in it."""
    try:
        return (
            name.isidentifier()
            and bool(importlib.metadata.distribution(name))
            and (_model_folder(name) / "meta.json").is_file()
        )
    except importlib.metadata.PackageNotFoundError:
        return False


def _model_folder(found: str) -> Path:
    spec = find_spec(found) if found.isidentifier() else None
    return (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else Path(found)
    )


def _spacy_version(found: str, folder: Path) -> str:
    if found.isidentifier() and _installed(found):
        return importlib.metadata.version(found)
    import srsly

    meta = folder / "meta.json"
    return str(srsly.read_json(meta).get("version", "")) if meta.is_file() else ""


@lru_cache(maxsize=2)
def _load_spacy(found: str) -> "Language":
    import spacy

    try:
        nlp = spacy.load(found, exclude=UNUSED)
        doc = nlp(PROBE)
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--spacy-model: spaCy cannot load {found!r} ({reason}); install what it needs or use"
            f" {BUNDLED}"
        ) from error
    missing = [part for part in NEEDED if not doc.has_annotation(part)]
    if missing:
        found = (
            f"{found!r} gives no {', '.join(missing)} (it has"
            f" {', '.join(nlp.pipe_names) or 'nothing'})"
        )
        raise UserError(f"--spacy-model: {found}; use a model with tagger, lemmatizer and parser")
    return nlp


def _parsed(doc: "Doc") -> Parsed:
    tokens, sentence, sentences = list(doc), -1, list[int]()
    for token in tokens:
        sentence += bool(token.is_sent_start)
        sentences.append(max(sentence, 0))
    blank = [token.is_space for token in tokens]
    return Parsed(
        word=[token.text for token in tokens],
        lemma=[
            token.text if space else token.lemma_
            for token, space in zip(tokens, blank, strict=True)
        ],
        pos=["SPACE" if space else token.pos_ for token, space in zip(tokens, blank, strict=True)],
        tag=["_SP" if space else token.tag_ for token, space in zip(tokens, blank, strict=True)],
        start=[token.idx for token in tokens],
        space=[token.whitespace_ for token in tokens],
        head=[token.head.i for token in tokens],
        dep=[token.dep_ for token in tokens],
        stop=[token.is_stop for token in tokens],
        sentence=sentences,
    )
