"""A client of the service: posts a cohort, follows it, brings the results home."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx


class ClientError(RuntimeError):
    """The service can't be reached or refused; the message says what to do."""


class Client:
    """Of one service.

    Args:
        url: such as http://127.0.0.1:8000.
        token: bearer token, empty for none.
    """

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        transport = httpx.HTTPTransport(retries=2)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=60, transport=transport, trust_env=False)

    def model(self) -> dict[str, Any]:
        """What is served: uri, digest, structures, card."""
        return dict(self._call("GET", "/v1/model").json())

    def post(self, body: dict[str, Any]) -> str:
        """Post a cohort; its id."""
        return str(self._call("POST", "/v1/cohorts", json=body).json()["id"])

    def cohort(self, cohort: str, *, cases: bool = True) -> dict[str, Any] | None:
        """A cohort's document; None if the service does not know it."""
        answer = self._request("GET", f"/v1/cohorts/{cohort}", params={"cases": cases})
        return None if answer.status_code == 404 else dict(self._checked(answer).json())

    def follow(self, cohort: str, progress: Callable[[dict[str, int]], None], every: float = 0.5) -> dict[str, Any]:
        """Wait for a cohort's end; `progress` gets the count of cases by state."""
        while True:
            document = self.cohort(cohort, cases=False)
            if document is None:
                raise ClientError(f"{self.url} no longer knows the cohort {cohort}; run the command again")
            progress(document["counts"])
            if document["state"] in ("done", "cancelled"):
                return self.cohort(cohort) or document
            time.sleep(every)

    def case(self, cohort: str, name: str) -> dict[str, Any]:
        """A case's document."""
        return dict(self._call("GET", f"/v1/cohorts/{cohort}/cases/{quote(name, safe='')}").json())

    def table(self, cohort: str) -> bytes:
        """The Parquet file of all cases."""
        return self._call("GET", f"/v1/cohorts/{cohort}/table.parquet").content

    def download(self, entry: dict[str, Any], target: Path) -> bool:
        """Fetch a file of a case; False if it is complete already.

        Args:
            entry: one of the case document's "files": href, bytes, sha256.
        """
        if is_complete(target, entry):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with self._http.stream("GET", entry["href"]) as answer, temporary.open("wb") as file:
                if answer.status_code != 200:
                    answer.read()
                    self._checked(answer)
                for chunk in answer.iter_bytes(2**20):
                    file.write(chunk)
            if not is_complete(temporary, entry):
                raise ClientError(f"{self.url}{entry['href']} came damaged; run the command again")
            temporary.replace(target)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._checked(self._request(method, path, **options))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClientError:
        start = "start it by: python platform/serve_model.py --model MODEL --allow-root DIR"
        return ClientError(f"the service at {self.url} can't be reached ({error}); {start}")

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
            sentences = problem.get("errors") or [problem["detail"]]
        except (ValueError, KeyError, AttributeError):
            sentences = [answer.text[:200] or answer.reason_phrase]
        if answer.status_code == 401:
            sentences = ["it asks for a token; give --token or set LDSEG_TOKEN"]
        raise ClientError(f"the service refused ({answer.status_code}): {'; '.join(sentences[:5])}")


def is_complete(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a file has the size and checksum that are told of it."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"])
