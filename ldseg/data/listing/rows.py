"""Tables as people save them: commas, semicolons or tabs; UTF-8 or UTF-16; capitals and blanks in names of columns."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator

SEPARATORS = ",;\t"
HEAD = 2**16  # characters that the columns' names are looked for in
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def decoded(content: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 where it says so or holds ASCII in two bytes.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    if b"\0" in content[:2]:
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le")
    return content.decode("utf-8")


def column_name(text: str) -> str:
    """Of a manifest: " Label 2" is label_2."""
    return re.sub(r"\s+", "_", text.strip().lower())


def read_rows(content: bytes) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of a table's columns, and of each row that is not empty its last line's number and its cells.

    What separates the cells is what the first line has most of, outside of quotes.

    Raises:
        UnicodeDecodeError: it is neither UTF-8 nor UTF-16.
        csv.Error: quotes don't fit; while the rows are gone through, too.
    """
    text = decoded(content)
    head = re.sub(r'"[^"]*"', "", text[:HEAD].lstrip().partition("\n")[0])
    separator = max(SEPARATORS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns = next((row for row in reader if row), [])
    return [column_name(name) for name in columns], (
        (reader.line_num, [cell.strip() for cell in row]) for row in reader if row
    )
