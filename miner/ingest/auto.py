"""A path of any kind -> the ingest that it is likely meant for, from its names, columns and first
rows.
"""

import shlex
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from miner.engine import How
from miner.errors import UserError
from miner.ingest.formats import IngestBeir
from miner.ingest.ingest import ingest
from miner.ingest.inputs import ALL, Bad, Input, Records, find_input, lines
from miner.ingest.packed import DAMAGED, zip_members
from miner.ingest.pairs import IngestCaptions, IngestPairs
from miner.ingest.readers import FLICKR, records
from miner.ingest.rows import Ingest, Reading
from miner.ingest.trec import IngestTrec
from miner.options import option
from miner.store import Manifest, Run

PEEKED = 50  # rows
# names of columns, the likelier first
QUERY = ("query", "question", "anchor", "sentence1", "text1", "premise", "title", "prompt", "input")
POSITIVE = (
    "positive",
    "pos",
    "positives",
    "positive_passages",
    "answer",
    "answers",
    "passage",
    "document",
    "context",
    "sentence2",
    "text2",
    "hypothesis",
    "body",
    "output",
    "text",
)
NEGATIVE = ("negative", "neg", "negatives", "hard_negatives", "hard_negative")
NEGATIVE_SCORES = ("neg_scores", "negative_scores", "negatives_scores")
CAPTION = ("caption", "captions", "sentence", "title")
IMAGE_ID, IMAGE = ("image_id", "imgid", "image", "file_name"), ("file_name", "image", "filepath")
QUERY_ID = ("query_id", "query-id", "qid")
SPLITS = ("train", "dev", "validation", "test")
TREC = {
    "corpus": ("corpus", "collection", "docs", "documents", "passages"),
    "topics": ("topics", "queries", "topic"),
    "qrels": ("qrels", "qrel"),
}


def ingest_any(run: Run, options: Ingest, how: How) -> list[Manifest]:
    """Ingest, where it is left to us what the input is; a refusal names the command that the input
    is likely meant for. The rest is as in `miner.ingest.ingest.ingest`.
    """
    said = None
    if isinstance(options, IngestAuto):
        options, said = options.resolve()
    try:
        return ingest(run, options, how, said)
    except UserError as error:
        if more := _hint(options):
            raise UserError(f"{error}{more}") from error
        raise


class IngestAuto(Ingest):
    """Whatever it is: looks at names, columns and first rows, says what it takes it for, and does
    that.
    """

    path: Path = option(..., "a file, a folder, or a zip file", argument=True)

    def read(self, run: Run) -> Reading:
        """Refuse: `resolve` comes first."""
        raise NotImplementedError

    def resolve(self) -> tuple[Ingest, str]:
        """Return the options of the ingest that the path is likely meant for, and its command.

        Raises:
            UserError: it is missing, or nothing that is known.
        """
        if (found := guess(self.path)) is None:
            raise UserError(
                f"{self.path}: is nothing that `quarry ingest auto` knows ({_seen(self.path)}); see"
                " docs/formats.md, and name the columns: quarry ingest pairs FILE --query COLUMN"
                " --positive COLUMN"
            )
        common = {name: getattr(self, name) for name in Ingest.model_fields}
        return found.kind(**found.options, **common), found.command


class Guess(NamedTuple):
    """An ingest that a path is likely meant for.

    Attributes:
        name: of the command. kind: class of its options.
        argument: what stands behind the name, if anything does.
        options: that are not at their defaults.
    """

    name: str
    kind: type[Ingest]
    argument: str | None
    options: dict[str, Any]

    @property
    def command(self) -> str:
        """Return the command as it is typed."""
        given = [
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in self.options.items()
            if name != self.argument
        ]
        own = [shlex.quote(str(self.options[self.argument]))] if self.argument else []
        return " ".join(["quarry ingest", self.name, *own, *given])


def guess(path: Path) -> Guess | None:
    """Return the ingest that a path is likely meant for; None if it is nothing that is known.

    Raises:
        UserError: there is no such path, or it cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    names = _names_in(path)
    if any(name.startswith("/corpus.jsonl") for name in names) and any(
        name.startswith("/qrels/") for name in names
    ):
        found = {Path(name).name.partition(".tsv")[0] for name in names if "/qrels/" in name}
        split = next((name for name in SPLITS if name in found), min(found))
        return Guess("beir", IngestBeir, "folder", {"folder": path, "split": split})
    if path.is_dir() and (trec := _trec_files(path)):
        return Guess("trec", IngestTrec, None, trec)
    try:
        file = find_input(path).parts()[0]
    except UserError:
        return None
    return _by_columns(path, file)


def _names_in(path: Path) -> list[str]:
    """Return the names in a folder, or a zip file without the folder that holds all."""
    if path.is_dir():
        found = [*path.glob("*"), *path.glob("qrels/*.tsv*")]
        return sorted(f"/{file.relative_to(path).as_posix()}" for file in found)
    members = zip_members(path) if path.is_file() else []
    return sorted(f"/{name.partition('/')[2] or name}" for name in members)


def _trec_files(path: Path) -> dict[str, Path]:
    """Return corpus, topics and qrels of a folder by their names, if there is one of each."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    found = {
        role: [file for file in files if file.name.lower().startswith(names)]
        for role, names in TREC.items()
    }
    return {role: some[0] for role, some in found.items()} if all(found.values()) else {}


def _by_columns(path: Path, file: Input) -> Guess | None:
    rows = list(islice(_peek(file), PEEKED))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if file.kind in (".txt", ".token") and not columns:
        flickr = any(isinstance(line, str) and FLICKR.match(line) for _, line in _first(file))
        named = {"group": "image_id", "image": "file_name"} if flickr else {}
        return Guess("captions", IngestCaptions, "file", {"file": str(path), **named})
    query, negative = _first_in(QUERY, columns), _first_in(NEGATIVE, columns)
    positive = _first_in([name for name in POSITIVE if name != query], columns)
    if query and positive:
        told = {"query": query, "positive": positive, "negative": negative}
        told["negative_score"] = _first_in(NEGATIVE_SCORES, columns) if negative else None
        told["query_id"] = _first_in(QUERY_ID, columns)
        return _with(Guess("pairs", IngestPairs, "file", {"file": str(path)}), told)
    if caption := _first_in(CAPTION, columns):
        group = _first_in(IMAGE_ID, columns)
        told = {"caption": caption, "group": group, "image": _first_in(IMAGE, columns)}
        return _with(Guess("captions", IngestCaptions, "file", {"file": str(path)}), told)
    return None


def _with(found: Guess, told: dict[str, str | None]) -> Guess:
    """Return a guess with further options; what is at its default is not said."""
    defaults = {name: field.default for name, field in found.kind.model_fields.items()}
    given = {name: value for name, value in told.items() if value and value != defaults[name]}
    return found._replace(options=found.options | given)


def _peek(file: Input) -> Iterator[dict[str, Any]]:
    """Yield rows as they come; none of a file that is no table."""
    if file.kind in (".txt", ".token"):
        return
    try:
        found: Records = records(file, {}, ALL)
        yield from (row for _, row in found if not isinstance(row, Bad))
    except UserError:
        return


def _first(file: Input) -> list[tuple[int, str | Bad]]:
    return list(islice(lines(file), PEEKED))


def _first_in(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the column that has the first of the names, however it is capitalised."""
    lowered = {column.lower(): column for column in columns}
    return next((lowered[name] for name in names if name in lowered), None)


def _seen(path: Path) -> str:
    """Say what is in a path."""
    if path.is_dir() or zip_members(path):
        names = [name[1:] for name in _names_in(path)]
        return f"found {', '.join(names[:6]) or 'nothing'}"
    try:
        file = find_input(path)
    except UserError as error:
        return str(error)
    columns = list(dict.fromkeys(name for row in islice(_peek(file), PEEKED) for name in row))
    return f"columns {', '.join(columns)}" if columns else f"a {file.kind or 'nameless'} file"


def _hint(options: Ingest) -> str:
    """Return what to add to a refusal: the command that the input is likely meant for, if it is
    another one; else nothing.
    """
    given = next(
        (getattr(options, name) for name in ("file", "folder") if hasattr(options, name)), None
    )
    if given is None or str(given).startswith("hf:"):
        return ""
    try:
        found = guess(Path(given))
    except (UserError, *DAMAGED):
        return ""
    if found is None or all(
        getattr(options, name, None) == value for name, value in found.options.items()
    ):
        return ""
    return f"; it looks like input for: {found.command}"
