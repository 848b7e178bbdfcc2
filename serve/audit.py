"""Who asked for what, as lines of JSON in two files: every request, and what was done with data, by ids.

They are opened when the first line comes, and the audit log again when it was moved away.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

ACCESS, AUDIT = "access.jsonl", "audit.jsonl"
ACCESS_BYTES, ACCESS_FILES = 2**24, 5  # the access log forgets; the audit log is for the operator to keep
ACTIONS = {
    ("POST", "/v1/cohorts"): "post",
    ("POST", "/v1/segmentations"): "post",
    ("POST", "/v1/uploads"): "upload",
    ("DELETE", "/v1/cohorts/{cohort}"): "cancel",
}
DOWNLOADS = re.compile(r"/files/\{key\}$|/table\.\w+$|/archive\.zip$|/image$|/slice\.png$")
log = logging.getLogger("ray.serve")


def action(method: str, route: str, query: Mapping[str, str]) -> str:
    """What a request does with data: post, upload, cancel, forget or download; empty for all else."""
    if method == "GET" and DOWNLOADS.search(route):
        return "download"
    found = ACTIONS.get((method, route), "")
    return (
        "forget" if found == "cancel" and query.get("forget", "false").lower() in ("true", "1", "on", "yes") else found
    )


class Logs:
    """The two logs of a service.

    Args:
        folder: of the files; made with the first line, for the service's own user alone.
        names: cases are named. Otherwise a digest of the cohort's id and the name stands for a case: who has the names
            finds it again.
    """

    def __init__(self, folder: Path, *, names: bool) -> None:
        self.folder, self.names = folder, names
        self._handlers: tuple[logging.Handler, logging.Handler] | None = None

    def request(self, line: Mapping[str, Any], done: str, ids: Mapping[str, str]) -> None:
        """A request was answered. A full disk is no reason to answer none, so it is only told in the service's log.

        Args:
            line: owner, client, method, route, status, bytes, seconds, request.
            done: see `action`.
            ids: cohort, name of a case, key of a file, upload: those that there are.
        """
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line, **self._ids(ids)}
        try:
            access, audit = self._handlers = self._handlers or self._open()
            _write(access, told)
            if done:
                _write(audit, {"action": done, **told})
        except OSError as error:
            log.error("the access and audit logs can't be written: %s", error.strerror)

    def _ids(self, ids: Mapping[str, str]) -> dict[str, str]:
        told = {known: ids[key] for key, known in (("cohort",) * 2, ("upload",) * 2, ("key", "file")) if key in ids}
        if "name" in ids:
            named = f"{ids.get('cohort', '')}/{ids['name']}".encode("utf-8", "surrogatepass")
            told["case"] = ids["name"] if self.names else hashlib.sha256(named).hexdigest()[:16]
        return told

    def _open(self) -> tuple[logging.Handler, logging.Handler]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        access = RotatingFileHandler(self.folder / ACCESS, maxBytes=ACCESS_BYTES, backupCount=ACCESS_FILES - 1)
        return access, WatchedFileHandler(self.folder / AUDIT)


def _write(handler: logging.Handler, line: Mapping[str, Any]) -> None:
    handler.handle(logging.LogRecord("ldseg", logging.INFO, "", 0, json.dumps(line), None, None))
