"""One clear sentence for a case that can't be used: which case, what is wrong, what to do."""

from __future__ import annotations


class CaseError(ValueError):
    """A case that can't be used; the others go on.

    Attributes:
        case: the case's name.
        problem: what is wrong, naming the file or the value.
        cure: what the user can do about it.
    """

    def __init__(self, case: str, problem: str, cure: str) -> None:
        super().__init__(case, problem, cure)  # all three in args, so that it survives pickling between processes
        self.case = case
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.case}: {self.problem}; {self.cure}"


class CohortError(ValueError):
    """A cohort (folder, manifest or split) that can't be used as a whole; the message names the cure."""
