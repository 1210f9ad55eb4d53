"""CSV and TSV -> records.

A TSV is either raw, a line a row in which a quotation mark is a letter, as passages begin with
quotation marks too often; or quoted, as pandas and spreadsheets write it: a cell that holds a tab,
a line end or a quotation mark stands in quotation marks, those inside it doubled. Which of the two
is told from its first rows. In a quoted file a cell that is not well quoted stands as it is.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeAlias

from miner.errors import UserError
from miner.ingest.inputs import Bad, Input, Records, check_columns, lines, opened

Cells: TypeAlias = Iterator[tuple[int, list[str] | Bad]]
SNIFFED = 2000  # lines from which it is told whether a TSV is quoted
LONGEST_CELL = 10_000  # lines
QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|$)')
OPEN = re.compile(r'"[^"]*(?:""[^"]*)*$')
DELIMITERS = (",", ";", "\t")  # of a CSV


def delimited(file: Input, needs: Mapping[str, str]) -> Records:
    """Yield the rows of a CSV or TSV file whose first line names the columns.

    Raises:
        UserError: a column is missing, or the file cannot be read.
    """
    rows = tsv_cells(file) if file.kind == ".tsv" else _csv_cells(file, needs)
    _, header = next(rows, (0, []))
    if isinstance(header, Bad):
        raise UserError(
            f"{file.name}: its first line is not UTF-8; name its encoding, such as --encoding"
            " latin-1"
        )
    check_columns(file, needs, header)
    for line, cells in rows:
        if isinstance(cells, Bad):
            yield line, cells
        elif len(cells) != len(header):
            yield line, Bad("bad_columns", "\t".join(cells))
        else:
            yield line, dict(zip(header, cells, strict=True))


def tsv_cells(file: Input) -> Cells:
    """Yield the cells of each row that is not blank."""
    quoted = file.quoting == "quoted"
    if file.quoting == "auto" and (quoted := _is_quoted(list(islice(lines(file), SNIFFED)))):
        file.say("cells are quoted, as pandas writes them (--quoting raw: quotes are letters)")
    if quoted:
        yield from _quoted_rows(lines(file))
        return
    for number, line in lines(file):
        if isinstance(line, Bad):
            yield number, line
        elif line:
            yield number, line.split("\t")


class Cut(NamedTuple):
    """A line cut into cells.

    Attributes:
        cells: as text.
        quoted: which of them were in quotation marks.
        open: whether the last one begins with a quotation mark that no other closes.
    """

    cells: list[str]
    quoted: list[bool]
    open: bool = False


def _cells_of(text: str) -> Cut:
    cells: list[str] = []
    quoted: list[bool] = []
    place = 0
    while place <= len(text):
        found = QUOTED.match(text, place)
        if found:
            cells.append(found[1].replace('""', '"'))
            end = found.end()
        else:
            is_open = OPEN.match(text, place) is not None
            end = text.find("\t", place)
            if is_open:
                return Cut([*cells, text[place:]], [*quoted, False], True)
            end = len(text) if end < 0 else end
            cells.append(text[place:end])
        quoted.append(found is not None)
        place = end + 1
    return Cut(cells, quoted)


def _quoted_rows(found: Iterator[tuple[int, str | Bad]]) -> Cells:
    """Yield rows whose cells may be quoted and hold line ends. A cell that stays open, or that
    would leave its row with another number of cells than the first, is text as it stands.
    """
    ahead, width = deque[tuple[int, str | Bad]](), 0
    while taken := ahead.popleft() if ahead else next(found, None):
        number, line = taken
        if isinstance(line, Bad) or not line:
            if line:
                yield number, line
            continue
        cut = _cells_of(line)
        if cut.open:
            closed = _closed(line, width, ahead, found)
            cut = closed[0] if closed else Cut(line.split("\t"), [])
        width = width or len(cut.cells)
        yield number, cut.cells


def _closed(
    line: str,
    width: int,
    ahead: deque[tuple[int, str | Bad]],
    found: Iterator[tuple[int, str | Bad]],
) -> tuple[Cut, list[str]] | None:
    """Return the row that a line begins whose last cell goes on in the lines behind it, with its
    lines, and take those; None if it does not go on.
    """
    held = [line]
    for count in range(1, LONGEST_CELL):
        if len(ahead) < count:
            if (more := next(found, None)) is None:
                return None
            ahead.append(more)
        text = ahead[count - 1][1]
        if isinstance(text, Bad):
            return None
        held.append(text)
        # only a line with a quotation mark can close the cell
        if '"' in text and not (cut := _cells_of("\n".join(held))).open:
            if width and len(cut.cells) != width:
                return None
            for _ in range(count):
                ahead.popleft()
            return cut, held
    return None


def _is_quoted(sample: list[tuple[int, str | Bad]]) -> bool:
    """Tell from the first lines of a TSV whether its cells are quoted: by cells that had to be,
    against cells in which a quotation mark stands bare; or because all of them are.
    """
    texts = [line for _, line in sample if isinstance(line, str) and line]
    if not any('"' in text for text in texts):
        return False
    width, needed, bare, plain, all_quoted = len(_cells_of(texts[0]).cells), 0, 0, 0, 0
    rows: Iterator[tuple[int, str | Bad]] = iter(list(enumerate(texts)))
    ahead = deque[tuple[int, str | Bad]]()
    while taken := ahead.popleft() if ahead else next(rows, None):
        number, line = taken
        cut = _cells_of(str(line))
        if cut.open:
            closed = _closed(str(line), width, ahead, rows)
            if closed is None:
                bare += 1
                continue
            # as rows of their own its lines would not fit
            needed += any(part.count("\t") + 1 != width for part in closed[1])
            continue
        for cell, quoted in zip(cut.cells, cut.quoted, strict=True):
            needed += quoted and ('"' in cell or "\t" in cell)
            bare += not quoted and '"' in cell
            all_quoted += quoted
            plain += not quoted and number > 0 and not _is_number(cell)
    return needed > bare or (all_quoted > 0 and plain == bare == 0)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]*(?:[eE][-+]?\d+)?", cell) is not None


def _csv_cells(file: Input, needs: Mapping[str, str]) -> Cells:
    """Yield the cells of each row. A wrong quote would swallow the rows behind it, so it stops
    the reading (UserError).
    """
    csv.field_size_limit(2**31 - 1)
    delimiter = _delimiter(file, needs)
    with opened(file) as stream:
        texts = (line.decode(errors="surrogateescape") for line in stream)
        reader = csv.reader(texts, strict=True, delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{file.name}:{line}: {error}; expected quotes that are closed, and doubled"
                    " inside a field"
                ) from error
            if cells is None:
                return
            try:
                "".join(cells).encode()
            except UnicodeEncodeError:
                text = ",".join(cells).encode(errors="surrogateescape").decode(errors="replace")
                yield line, Bad("not_utf8", text)
            else:
                if cells:
                    yield line, cells


def _delimiter(file: Input, needs: Mapping[str, str]) -> str:
    """Return what parts the cells of a CSV: the first delimiter with which its first line has the
    columns that are needed, else a comma; if none is needed, the most frequent one.
    """
    first = next((line for _, line in lines(file) if isinstance(line, str)), "")
    if not needs:
        return max(DELIMITERS, key=first.count)
    for delimiter in DELIMITERS:
        if set(needs) <= {cell.strip('"') for cell in first.split(delimiter)}:
            if delimiter != ",":
                file.say(f"cells are parted by {delimiter!r}")
            return delimiter
    return ","
