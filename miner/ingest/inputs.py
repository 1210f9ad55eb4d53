"""Where input comes from: files, packed or not, in any encoding; folders of files; data sets of the
hub, and those that `datasets` saved.
"""

import codecs
import io
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from miner.errors import UserError
from miner.files import file_fingerprint, fingerprint
from miner.ingest.packed import DAMAGED, KINDS_OF_PACKING, Transcoded, unpacked, zip_members

BATCH = 1024  # rows of a Parquet file that are turned into Python values at a time
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may leave half a character
SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` leaves in a folder
DATA = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
EXCEL = (".xlsx", ".xls", ".ods")
Quoting = Literal["auto", "quoted", "raw"]


class Bad(NamedTuple):
    """A row that could not be read: the reason that is counted, and the row as text."""

    reason: str
    raw: str


class Hub(NamedTuple):
    """A data set that `datasets` reads."""

    name: str
    config: str | None
    split: str

    def builder(self) -> Any:
        """Return the builder of the data set.

        Raises:
            UserError: there is no such data set, or it cannot be reached.
        """
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetsError

        try:
            return load_dataset_builder(self.name, self.config)
        except (OSError, ValueError, DatasetsError) as error:
            raise UserError(f"hf:{self.name}: {one_line(error)}") from error

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for the files and their versions."""
        builder = self.builder()
        files = {
            str(split): [str(part) for part in found.origin_metadata]
            for split, found in (builder.config.data_files or {}).items()
        }
        return fingerprint([builder.hash, files])

    def rows(self) -> Any:
        """Return the rows, as they stream in."""
        return self.builder().as_streaming_dataset(split=self.split)


class Saved(NamedTuple):
    """A folder that `save_to_disk` of `datasets` wrote."""

    path: Path
    split: str

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for the contents."""
        files = sorted(file for file in self.path.rglob("*") if file.is_file())
        return fingerprint(
            [(str(file.relative_to(self.path)), file_fingerprint(file)) for file in files]
        )

    def rows(self) -> Any:
        """Return the rows of the split.

        Raises:
            UserError: there is no such split.
        """
        from datasets import DatasetDict, load_from_disk

        found = load_from_disk(str(self.path))
        if not isinstance(found, DatasetDict):
            return found
        if self.split not in found:
            raise UserError(
                f'{self.path}: missing split "{self.split}" (found {", ".join(found)}); name one'
                " with --split"
            )
        return found[self.split]


class Folder(NamedTuple):
    """Files of one kind that are read one after the other."""

    files: tuple[Path, ...]


class Input(NamedTuple):
    """An input.

    Attributes:
        name: what places and the manifest call it.
        where: it is.
        member: of a zip file.
        encoding: of its text; None is UTF-8.
        quoting: of its cells, if it is a TSV.
        notes: where to say how it was read; all inputs of one ingest share the list.
    """

    name: str
    where: Path | Hub | Saved | Folder
    member: str | None = None
    encoding: str | None = None
    quoting: Quoting = "auto"
    notes: list[str] | None = None

    def say(self, text: str) -> None:
        """Note something that the user should know of how the input was read, once."""
        if self.notes is not None and f"{self.name}: {text}" not in self.notes:
            self.notes.append(f"{self.name}: {text}")

    @property
    def path(self) -> Path:
        """Return the file's path."""
        if not isinstance(self.where, Path):
            raise UserError(f"{self.name} is a data set or a folder; expected a file")
        return self.where

    @property
    def kind(self) -> str:
        """Return the extension, that of packing aside: ".jsonl" of "a.jsonl.gz"."""
        path = Path((self.member or self.path.name).lower())
        while path.suffix in KINDS_OF_PACKING:
            path = path.with_suffix("")
        return path.suffix

    def fingerprint(self) -> str:
        """Return 16 hex digits that stand for the contents: of a file its bytes, of a data set
        its files and their versions.
        """
        if isinstance(self.where, Path):
            return file_fingerprint(self.where)
        if isinstance(self.where, Folder):
            return fingerprint([(file.name, file_fingerprint(file)) for file in self.where.files])
        return self.where.fingerprint()

    def parts(self) -> "list[Input]":
        """Return the files of a folder, each an input, else the input itself."""
        if not isinstance(self.where, Folder):
            return [self]
        return [
            self._replace(name=f"{self.name}/{file.name}", where=file) for file in self.where.files
        ]


class _All:
    """Every column."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


ALL = _All()


def wanted(needs: Collection[str], also: Collection[str]) -> Collection[str]:
    """Return the columns that are read: those needed and others, or ALL."""
    return also if also is ALL else {*needs, *also}


Records: TypeAlias = Iterator[tuple[int, dict[str, Any] | Bad]]


def check_columns(file: Input, needs: Mapping[str, str], found: Collection[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        UserError: names the first missing column, those found and the flag that helps.
    """
    for column, option in needs.items():
        if column not in found:
            hint = f"; name it with {option}" if option else ""
            raise UserError(
                f'{file.name}: missing "{column}" (found {", ".join(found) or "nothing"}){hint}'
            )


def find_input(given: str | Path, split: str = "train", name: str | None = None) -> Input:
    """Return the input that the user gave: a file, a folder of files, a folder that `save_to_disk`
    wrote, or hf:NAME[:CONFIG].

    Raises:
        UserError: there is no such file, or nothing in the folder that can be read.
    """
    if str(given).startswith("hf:"):
        repository, _, config = str(given).removeprefix("hf:").partition(":")
        return Input(str(given), Hub(repository, config or None, split))
    path = Path(given)
    if path.is_dir():
        return Input(name or path.name, _in_folder(path, split))
    if not path.is_file():
        raise UserError(f"{given}: no such file")
    return find_member(Input(name or path.name, path), "")


def find_member(file: Input, end: str) -> Input:
    """Return an input with the member of its zip file whose name ends so; of any other file, the
    input as it is.

    Raises:
        UserError: there is none, or more than one.
    """
    if file.path.suffix.lower() in EXCEL:
        raise UserError(
            f"{file.name}: is a spreadsheet; expected a table as text: save it as CSV UTF-8, or in"
            " Python pandas.read_excel(…).to_parquet(…)"
        )
    try:
        members = zip_members(file.path)
    except DAMAGED as error:
        raise _damaged(file, error) from error
    if not members:
        return file
    found = [member for member in members if f"/{member}".endswith(f"/{end}" if end else "")]
    if len(found) != 1:
        raise UserError(
            f"{file.name}: expected one {end or 'file'} in it (found"
            f" {', '.join((found or members)[:5])}); unpack it and name the file"
        )
    return file._replace(member=found[0])


def _in_folder(path: Path, split: str) -> Saved | Folder:
    if any((path / name).is_file() for name in SAVED):
        return Saved(path, split)
    found = [file for file in sorted(path.iterdir()) if file.is_file()]
    kinds = {kind for file in found if (kind := Input("", file).kind) in DATA}
    if len(kinds) != 1:
        names = ", ".join(sorted(file.name for file in path.iterdir())[:5])
        raise UserError(
            f"{path}: is a folder; expected a file, or a folder of files of one kind"
            f" ({', '.join(DATA)}; found {names or 'nothing'})"
        )
    return Folder(tuple(file for file in found if Input("", file).kind in kinds))


@contextmanager
def opened(file: Input) -> Iterator[io.BufferedReader]:
    """Open a file for reading UTF-8 bytes: unpacked, from its own encoding, a mark skipped.

    Raises:
        UserError: it cannot be read, is damaged, or of another encoding.
    """
    try:
        with open(file.path, "rb") as plain, unpacked(plain, file.member) as stream:
            if file.encoding is not None:
                yield _as_utf8(file, stream)
                return
            head = stream.peek(4)[:4]
            if head[:2] in UTF16 or b"\0" in head:
                raise UserError(
                    f"{file.name}: is UTF-16 or binary, expected UTF-8; pass --encoding utf-16, or"
                    " the encoding that it has"
                )
            if head.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
            yield stream
    except DAMAGED as error:
        raise _damaged(file, error) from error
    except OSError as error:
        raise UserError(f"{file.name}: cannot be read ({one_line(error)})") from error


def _damaged(file: Input, error: Exception) -> UserError:
    return UserError(
        f"{file.name}: truncated or corrupt packed file ({one_line(error)}); fetch or pack it again"
    )


def _as_utf8(file: Input, stream: io.BufferedReader) -> io.BufferedReader:
    """Return a stream in UTF-8 of one in the file's encoding; what does not decode is a line that
    is not UTF-8.

    Raises:
        UserError: there is no such encoding.
    """
    try:
        codecs.lookup(file.encoding or "")
    except LookupError:
        raise UserError(
            f"--encoding {file.encoding}: no such encoding; expected one such as latin-1, cp1252,"
            " utf-16, gb18030 or shift_jis"
        ) from None
    return io.BufferedReader(Transcoded(stream, file.encoding or ""), 1 << 16)


def lines(file: Input) -> Iterator[tuple[int, str | Bad]]:
    """Yield the number and text of each line, without its end; a line that is not UTF-8 is bad."""
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, Bad("not_utf8", line.decode(errors="replace").rstrip("\r\n"))


def data_set_rows(
    file: Input, where: Hub | Saved, needs: Mapping[str, str], also: Collection[str]
) -> Records:
    """Yield the records of a data set."""
    from datasets.exceptions import DatasetsError

    try:
        rows = where.rows()
        columns = rows.column_names or list(next(iter(rows), {}))
        check_columns(file, needs, columns)
        # an image that is not asked for is not decoded
        read = wanted(needs, also)
        rows = rows.select_columns([name for name in columns if name in read])
        yield from enumerate(rows, 1)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{file.name}: {one_line(error)}") from error


def one_line(error: object) -> str:
    """Return a message of another library as one line."""
    return " ".join(str(error).split())
