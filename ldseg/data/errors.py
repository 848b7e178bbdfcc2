"""One clear sentence for a case that can't be used: which case, what is wrong, what to do."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """The text with U+FFFD for each byte of a file name that is no UTF-8: it can be printed and stored everywhere."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def is_text(name: object) -> bool:
    """Whether a path can be written as UTF-8."""
    return printable(str(name)) == str(name)


class CaseError(ValueError):
    """A case that can't be used; the others go on.

    Attributes:
        case: the case's name.
        problem: what is wrong, naming the file or the value.
        cure: what the user can do about it.
    """

    def __init__(self, case: str, problem: str, cure: str) -> None:
        # all three in args, so that it survives pickling between processes
        super().__init__(*map(printable, (case, problem, cure)))
        self.case, self.problem, self.cure = self.args

    def __str__(self) -> str:
        return f"{self.case}: {self.problem}; {self.cure}"


class CohortError(ValueError):
    """A cohort (folder, manifest or split) that can't be used as a whole; the message names the cure."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
