"""The job store: cohorts and cases that survive a crash, in SQLite or PostgreSQL."""

from serve.store.database import sqlite_url
from serve.store.jobs import JobStore
from serve.store.records import (
    ENDED,
    STATES,
    UNFINISHED,
    BadCursor,
    CasePage,
    Cohort,
    Event,
    Held,
    KeyConflict,
    NewCohort,
    Post,
    Queue,
    QueueFull,
    SchemaError,
    StoreAway,
    StoredCase,
    StoreError,
    Work,
)

__all__ = [
    "ENDED",
    "STATES",
    "UNFINISHED",
    "BadCursor",
    "CasePage",
    "Cohort",
    "Event",
    "Held",
    "JobStore",
    "KeyConflict",
    "NewCohort",
    "Post",
    "Queue",
    "QueueFull",
    "SchemaError",
    "StoreAway",
    "StoredCase",
    "StoreError",
    "Work",
    "sqlite_url",
]
