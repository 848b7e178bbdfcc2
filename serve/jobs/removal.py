"""Cohorts that are forgotten, cases that are cancelled, uploads that nobody names: nothing of them stays."""

from __future__ import annotations

import shutil
from pathlib import Path

from ldseg.results.publication import recover, sweep
from ldseg.results.removal import REMOVED, clear, remove, removed, unmark
from serve.intake.uploads import sweep_uploads
from serve.settings import Settings
from serve.store import JobStore

UNUSED_UPLOAD_S = 24 * 3600.0  # an upload that no cohort has named for so long goes away


class Removal:
    """Removes files, and what the store knows of them; every method may block, and may be called from any thread.

    A cohort's files go first, which needs no room on the disk, and leave a mark (`ldseg.results.removal`). Its row goes
    then, or later if the database has no room: the mark tells of it, also to the next start.
    """

    def __init__(self, settings: Settings, store: JobStore) -> None:
        self.settings, self.store, self.results = settings, store, settings.results
        self._swept: set[str] = set()  # cohorts that had ended when they were looked at

    def remove_files(self, cohort: str) -> None:
        """Remove a cohort's results and the volumes that came with it, and note that its row is to go.

        Raises:
            StoreAway: nothing was removed.
            OSError: the results can't be removed.
        """
        images = [Path(case.image) for case in self.store.every_case(cohort, owner=None)]
        remove(self.results / cohort)
        for image in images:
            if image.parent.parent == self.settings.uploads:
                shutil.rmtree(image.parent, ignore_errors=True)

    def remove_row(self, cohort: str) -> None:
        """Cancel what is unfinished of a cohort whose files have been removed, and forget it.

        Raises:
            StoreAway: it stays; call it again.
        """
        self.store.cancel(cohort)
        self.store.forget(cohort)
        clear(self.results / cohort)

    def finish(self) -> None:
        """End every removal that was begun, by whomever.

        Raises:
            StoreAway: some rows stay; call it again.
        """
        for folder in removed(self.results):
            self.remove_row(folder.name)
            unmark(folder)

    def remove_cancelled(self, cohort: str) -> None:
        """Remove results of cancelled cases; who is at such a case removes what he publishes himself.

        Raises:
            StoreAway: they stay; call it again.
        """
        folder = self.results / cohort
        there = {path.name for path in folder.glob("*/")}
        for case in self.store.every_case(cohort, owner=None) if there else ():
            if case.state == "cancelled" and case.name in there:
                shutil.rmtree(folder / case.name, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a crash has left: half-written results, results of cancelled cases, uploads without a cohort.

        Results of cohorts that this store does not know stay: it may be another one, or one brought back from a backup.

        Raises:
            StoreAway: call it again.
        """
        sweep(self.results)
        for folder in self.results.glob("*/"):
            if folder.name.startswith(REMOVED) or folder.name in self._swept:
                continue
            cohort = self.store.cohort(folder.name, None)
            if cohort is not None and cohort.finished is not None:
                recover(folder)  # nobody publishes there any more
                if cohort.counts["cancelled"]:
                    self.remove_cancelled(cohort.id)
                self._swept.add(cohort.id)
        self.sweep_uploads()

    def sweep_uploads(self) -> None:
        """Remove uploads that no cohort names and that are old.

        Raises:
            StoreAway: call it again.
        """
        kept = self.settings.kept_uploads
        if not any(path != kept for path in (*self.settings.uploads.glob("*"), *kept.glob("*"))):
            return
        cohorts, before = [], None
        while page := self.store.page(None, before, 100):
            cohorts += page
            before = page[-1].number
        named = (case.image for cohort in cohorts for case in self.store.every_case(cohort.id, owner=None))
        sweep_uploads(self.settings, UNUSED_UPLOAD_S, named)
