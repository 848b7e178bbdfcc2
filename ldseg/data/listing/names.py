"""Names of cases: made of file names, whatever bytes those hold."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from ldseg.data.errors import printable
from ldseg.data.volume import stem


def case_name(file: Path, root: Path | None = None) -> str:
    """A case's name by its file: without the ending, composed (NFC), U+FFFD in place of what is no UTF-8.

    Args:
        root: the folder that is searched; the folders between it and the file come first, joined by "_".
    """
    folders = file.parent.relative_to(root).parts if root else ()
    return unicodedata.normalize("NFC", printable("_".join((*folders, stem(file)))))
