"""The job store's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import URL, delete

from serve.store import leases, posting, reading
from serve.store.database import POST_LOCK, Database
from serve.store.records import (
    CasePage,
    Cohort,
    Event,
    Held,
    KeyConflict,
    NewCohort,
    Post,
    Queue,
    QueueFull,
    StoredCase,
    Work,
)
from serve.store.schema import IS_UNFINISHED, cohorts
from serve.store.upgrade import upgrade


class JobStore:
    """Cohorts and cases that survive a crash, on SQLite or PostgreSQL.

    A method is one transaction (or one for each page, where it says so) and may be called from any thread. A commit
    is on the disk when it returns. Readers give the owner whose cohorts they may see; None sees all.

    Args:
        url: sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE; the tables are made or brought up to
            date at once.
        max_attempts: so many workers may die over a case before it is set aside as failed.

    Raises:
        StoreAway: the database does not answer just now; every method may raise it.
        SchemaError: its tables are newer than this version.
        StoreError: the address is of no database that is known here.
    """

    def __init__(self, url: str | URL, *, max_attempts: int = 3) -> None:
        self.database = Database(url)
        self.max_attempts = max_attempts
        upgrade(self.database)

    def add(
        self,
        cohort: NewCohort,
        cases: Sequence[tuple[str, str]],
        *,
        max_cases_of_owner: int | None = None,
        max_cohorts: int | None = None,
    ) -> tuple[str, bool]:
        """Store a cohort of (name, image) as queued; see `Post` for the limits.

        Returns:
            Its id, and whether it is new: the same key and body give the cohort that is there.

        Raises:
            KeyConflict: the key was used for another body.
            QueueFull: a limit would be passed.
        """
        post = Post(
            cohort=cohort, cases=cases, max_cases_of_owner=max_cases_of_owner, max_cohorts=max_cohorts
        )  # fmt: skip
        with self.database.write() as connection:
            self.database.alone(connection, POST_LOCK)
            return posting.add(connection, post, self.database.now(connection))

    def add_all(self, posts: Sequence[Post]) -> list[Cohort | KeyConflict | QueueFull]:
        """As `add` of each in turn, in one transaction, which is one flush of the disk; one's refusal is its own."""
        answers: list[Cohort | KeyConflict | QueueFull] = []
        with self.database.write() as connection:
            self.database.alone(connection, POST_LOCK)
            for post in posts:
                try:
                    cohort, _ = posting.add(connection, post, self.database.now(connection))
                except (KeyConflict, QueueFull) as error:  # raised before anything was written
                    answers.append(error)
                else:
                    answers.append(reading.get(connection, cohort))
        return answers

    def unfinished(self, owner: str, *, upload: bool) -> int:
        """Cohorts (or uploads) of an owner that have cases left to do."""
        with self.database.read() as connection:
            return posting.unfinished(connection, owner, upload=upload)

    def claim(self, worker: str, lease_s: float) -> Work | None:
        """Take a case for so many seconds: uploads first, then by priority, then of each owner in turn
        and of each of its cohorts in turn.

        Cases whose lease has run out are queued again before, in a transaction of their own.
        """
        with self.database.read() as connection:
            expired = leases.has_expired(connection, self.database.now(connection))
        if expired:
            with self.database.write() as connection:
                leases.take_back(connection, self.max_attempts, self.database.now(connection))
        with self.database.write() as connection:
            return leases.claim(connection, worker, lease_s, self.database.now(connection))

    def heartbeat(self, worker: str, held: Sequence[tuple[str, str]], lease_s: float) -> Held:
        """Extend the leases of the cases (cohort, name) that a worker has at work.

        Returns:
            Those of them that were cancelled, taken over or removed, so that the worker can stop.
        """
        with self.database.write() as connection:
            now = self.database.now(connection)
            return Held(lost=leases.extend(connection, worker, held, lease_s, now))

    def finish(
        self,
        work: Work,
        worker: str,
        state: str,
        *,
        error: str | None = None,
        reason: str | None = None,
        result: dict[str, Any] | None = None,
        model_digest: str | None = None,
    ) -> bool:
        """End a case as done, failed or cancelled.

        Args:
            error: one sentence for who posted it.
            reason: one word for counts.
            result: as JSON; its numbers' "agreement" ranks the case.

        Returns:
            False if it is no longer this worker's: cancelled, taken over or removed. True again if the same is said
            again, as it must be when a StoreAway left open whether it was heard.
        """
        end = {"error": _plain(error), "reason": _plain(reason), "result": result, "model_digest": model_digest}
        with self.database.write() as connection:
            return leases.finish(connection, work, worker, state, end, self.database.now(connection))

    def give_back(self, work: Work, worker: str, *, counted: bool) -> bool:
        """Queue a case again that a worker could not end for a reason that is not the case's own.

        Args:
            counted: whether it counts as an attempt.

        Returns:
            False if it is no longer this worker's.
        """
        with self.database.write() as connection:
            return leases.give_back(connection, work, worker, counted, self.database.now(connection))

    def release(self, worker: str) -> int:
        """At a clean stop: a worker's cases are queued again and no attempt is counted; how many."""
        with self.database.write() as connection:
            return leases.release(connection, worker, self.database.now(connection))

    def cancel(self, cohort: str) -> list[str]:
        """Cancel what is unfinished; the names of the cases that were running."""
        with self.database.write() as connection:
            return leases.cancel(connection, cohort, self.database.now(connection))

    def forget(self, cohort: str) -> bool:
        """Remove a cohort whose cases have all ended, with its events; False if there is none such."""
        with self.database.write() as connection:
            gone = delete(cohorts).where(cohorts.c.id == cohort, ~IS_UNFINISHED)
            return connection.execute(gone).rowcount == 1

    def cohort(self, cohort: str, owner: str | None) -> Cohort | None:
        """A cohort with the counts of its cases."""
        with self.database.read() as connection:
            return reading.find(connection, cohort, owner)

    def page(self, owner: str | None, before: int | None, limit: int, search: str = "") -> list[Cohort]:
        """Cohorts with a number below `before`, the newest first; with `search` those whose name or id holds it."""
        with self.database.read() as connection:
            return reading.page(connection, owner, before, limit, search)

    def cases(
        self,
        cohort: str,
        *,
        owner: str | None,
        after: str | None = None,
        limit: int = 500,
        order: str = "posted",
        results: bool = False,
    ) -> CasePage:
        """Some cases of a cohort; none where it is absent.

        Args:
            after: the `next` of the page before.
            order: posted, or agreement: the lowest first, those without one last, as posted.
            results: with the numbers of those that are done.

        Raises:
            BadCursor: `after` was told by no page of this order.
        """
        with self.database.read() as connection:
            found = reading.find(connection, cohort, owner)
            if found is None:
                return CasePage(cases=(), next=None)
            return reading.case_page(connection, found, after=after, limit=limit, order=order, results=results)

    def every_case(self, cohort: str, *, owner: str | None, results: bool = False) -> Iterator[StoredCase]:
        """All cases as posted, read by pages: each is as it was when its page was read."""
        after = None
        while True:
            page = self.cases(cohort, owner=owner, after=after, results=results)
            yield from page.cases
            if (after := page.next) is None:
                return

    def case(self, cohort: str, name: str, *, owner: str | None) -> StoredCase | None:
        """One case with its result."""
        with self.database.read() as connection:
            return reading.case(connection, cohort, name, owner)

    def events(self, cohort: str, *, owner: str | None, after: int = 0, limit: int = 500) -> list[Event]:
        """Changes of a cohort with a number above `after`, in order and without gaps, but for purged ones."""
        with self.database.read() as connection:
            found = reading.find(connection, cohort, owner)
            return [] if found is None else reading.since(connection, found, after, limit)

    def purge_events(self, *, keep_last: int = 100, finished_s: float = 3600.0) -> int:
        """Remove all but the last `keep_last` events of each cohort that finished so many seconds ago; how many."""
        with self.database.write() as connection:
            return reading.purge(connection, keep_last, self.database.now(connection) - finished_s)

    def queue(self) -> Queue:
        """What waits, what is at work and what has failed."""
        with self.database.read() as connection:
            return reading.queue(connection)

    def ping(self) -> None:
        """Ask the database for nothing."""
        with self.database.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def _plain(text: str | None) -> str | None:
    """Without what a database can't hold: zero bytes, and halves of characters that file names may contain."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode()
