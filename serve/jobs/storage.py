"""Whether what is accepted can be kept: folders that are there, writable, private, and have room."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve.settings import Settings
from serve.store import JobStore, StoreAway

log = logging.getLogger("ray.serve")

MARKER = (
    ".ldseg-results"  # made at the start: a folder without it is another one, such as a mount point without its disk
)


@dataclass(frozen=True)
class Fault:
    """Why nothing can be kept just now.

    Attributes:
        kind: of the problem that a post is answered with.
        sentence: what is wrong and the cure; it names no path, anybody may see it.
    """

    kind: str
    sentence: str


class Storage:
    """The disk of the results and the uploads, and the job store; made once, at the start of a service.

    Folders are of mode 700, and files that this process makes from now on of mode 600.
    """

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self.settings, self.store = settings, store
        self._told: Fault | None = None
        self._marked = False
        os.umask(0o077)
        with suppress(OSError):  # it is told as a fault
            for folder in (settings.folder, settings.results, settings.uploads, settings.kept_uploads):
                folder.mkdir(parents=True, exist_ok=True)
                with suppress(PermissionError):  # it is somebody else's
                    folder.chmod(0o700)
            self._mark()

    def fault(self) -> Fault | None:
        """What is wrong, None if nothing is; it costs a look at the disk."""
        found = self._fault()
        if found != self._told:
            log.warning("%s", f"cases wait: {found.sentence}" if found else "there is room for results again")
            self._told = found
        return found

    def health(self) -> Fault | None:
        """As `fault`, and whether the database answers."""
        if (found := self.fault()) is not None:
            return found
        try:
            self.store.ping()
        except StoreAway:
            return Fault("database-unavailable", "the job store does not answer just now")
        return None

    def _fault(self) -> Fault | None:
        results = self.settings.results
        try:
            self.store.database.check_file()
        except StoreAway:
            cure = "the operator must put it back, or start the service again"
            return Fault("database-unavailable", f"the job store's file was removed or replaced; {cure}")
        try:
            there = (results / MARKER).exists() if self._marked else results.is_dir()
            writable = os.access(results, os.W_OK | os.X_OK)
            free = min(_free(folder) for folder in self._disks())
        except OSError as error:
            cure = "the operator must see to its disk"
            return Fault("storage-unavailable", f"the results folder can't be reached ({error.strerror}); {cure}")
        if not there:
            cure = "the operator must bring it back, or start the service again"
            return Fault("storage-unavailable", f"the results folder is gone, or another one is in its place; {cure}")
        if not writable:
            return Fault("storage-unavailable", "the results folder can't be written to; the operator must permit it")
        if free < self.settings.min_free_bytes:
            return Fault("storage-full", "the service's disk is full; remove old cohorts, or the operator makes room")
        if not self._marked:  # it could not be written to at the start
            self._mark()
        return None

    def _mark(self) -> None:
        with suppress(OSError):
            (self.settings.results / MARKER).touch()
            self._marked = True

    def _disks(self) -> list[Path]:
        return [self.settings.results, *([self.store.database.folder] if self.store.database.folder else [])]


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
