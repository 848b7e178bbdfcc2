"""What a promotion or a rollback came to, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass

from ldseg.orchestration.gates import Gates
from ldseg.orchestration.judgement import Check, table
from ldseg.orchestration.registry import CHAMPION

NO_GATES = Gates()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided and why.

    Attributes:
        action: "promote", "refuse", "rollback" or "none" (it was there already).
        before: the version that had the alias.
        notes: what was found and mended before.
        source: where the scores come from.
    """

    name: str
    version: int
    before: int | None
    action: str
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    gates: Gates = NO_GATES
    dry_run: bool = False

    @property
    def passed(self) -> bool:
        """Whether the version has the alias now (of a dry run: would have it)."""
        return self.action != "refuse"

    def text(self) -> str:
        """For a terminal."""
        lines = [f"mended: {note}" if not self.dry_run else f"found: {note}" for note in self.notes]
        if self.source:
            cases = self.gates.cases
            how = f"{cases.resamples} resamples of the cases, seed {cases.seed}; gates: {self.gates.source}"
            lines.append(f"{self.source}; {how}")
        if self.checks:
            champion = f"version {self.before}" if self.before else "no champion"
            lines.append(table(self.checks, f"version {self.version}", champion, self.gates))
        return "\n".join([*lines, self._end()])

    def _end(self) -> str:
        now = f"{CHAMPION} of {self.name}"
        if self.action == "none":
            return f"{now} is version {self.version} already"
        if self.action == "refuse":
            stays = f"stays at version {self.before}" if self.before else "stays unset"
            return f"{now} {stays}: version {self.version} does not pass" + (" (dry run)" if self.dry_run else "")
        earlier = f", before it {self.before}" if self.before else ""
        if self.dry_run:
            return f"{now} would be version {self.version}{earlier} (dry run: nothing was changed)"
        return f"{now} is version {self.version}{earlier}"
