"""A client of the service: posts cohorts, follows them, brings the results home, also over a bad connection."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from ldseg.data.errors import printable
from serve.client.download import fetch

BUSY = (429, 503)


class ClientError(RuntimeError):
    """The service can't be reached or refused; the message says what to do.

    Attributes:
        kind: of the problem document, such as not-found; empty without one.
        status: of the answer; 0 without one.
    """

    def __init__(self, message: str, *, kind: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status


class Client:
    """Of one service. What may be sent twice is sent again when the connection breaks or the service is busy.

    Args:
        url: such as http://127.0.0.1:8000.
        token: bearer token, empty for none.
        patience_s: how long a busy or silent service is tried.
    """

    def __init__(self, url: str, token: str = "", *, patience_s: float = 60.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url, self.patience_s = url.rstrip("/"), patience_s
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def model(self) -> dict[str, Any]:
        """What is served: uri, digest, structures, card."""
        return dict(self._call("GET", "/v1/model").json())

    def post(self, body: dict[str, Any], *, key: str = "") -> str:
        """Post a cohort; its id.

        Args:
            key: names the request, so that sending it again gives the same cohort; made up if it is empty.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return str(self._call("POST", "/v1/cohorts", json=body, headers=headers).json()["id"])

    def upload(self, image: Path) -> str:
        """Send an image; what a manifest names it by. Sent again, it is the same."""

        def attempt() -> httpx.Response:
            with image.open("rb") as file:  # read piece by piece, each time from the beginning
                return self._http.post("/v1/uploads", files={"image": (printable(image.name), file)}, timeout=600)

        return str(self._checked(self._with_retries(attempt)).json()["image"])

    def cohort(self, cohort: str, *, cases: bool = True) -> dict[str, Any] | None:
        """A cohort's document; None if the service does not know it."""
        answer = self._request("GET", f"/v1/cohorts/{quote(cohort, safe='')}", params={"cases": cases})
        return None if answer.status_code == 404 else dict(self._checked(answer).json())

    def cases(self, cohort: str, *, page: int = 500) -> Iterator[dict[str, Any]]:
        """All cases of a cohort as they were posted, page by page."""
        following: str | None = f"/v1/cohorts/{quote(cohort, safe='')}/cases?limit={page}&numbers=false"
        while following:
            answer = self._call("GET", following)
            yield from answer.json()["cases"]
            following = answer.links.get("next", {}).get("url")

    def follow(self, cohort: str, progress: Callable[[dict[str, int]], None], every: float = 0.5) -> dict[str, Any]:
        """Wait for a cohort's end; `progress` gets the count of cases by state, at most every so many seconds."""
        while True:
            document = self.cohort(cohort, cases=False)
            if document is None:
                raise ClientError(f"{self.url} no longer knows the cohort {cohort}; run the command again")
            progress(document["counts"])
            if document["state"] in ("done", "cancelled"):
                return document
            time.sleep(every)

    def case(self, cohort: str, name: str) -> dict[str, Any]:
        """A case's document."""
        return dict(self._call("GET", f"/v1/cohorts/{cohort}/cases/{quote(name, safe='')}").json())

    def table(self, cohort: str) -> bytes:
        """The Parquet file of all cases."""
        return self._call("GET", f"/v1/cohorts/{cohort}/table.parquet").content

    def download(self, entry: dict[str, Any], target: Path) -> bool:
        """Fetch a file of a case; False if it is complete already. What a broken download left is gone on with.

        Args:
            entry: one of the case document's "files": href, bytes, sha256.

        Raises:
            ClientError: it can't be had, or does not have its checksum.
        """
        try:
            return fetch(self._http, entry, target, patience_s=self.patience_s, check=self._checked_stream)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise ClientError(f"{self.url}{entry['href']} {error}; run the command again") from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._checked(self._request(method, path, **options))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._with_retries(lambda: self._http.request(method, path, **options))

    def _with_retries(self, attempt: Callable[[], httpx.Response]) -> httpx.Response:
        """Try again while the service is busy or can't be reached; every request here may be sent twice."""
        start, wait = time.monotonic(), 0.25
        while True:
            asked = wait
            try:
                answer = attempt()
                if answer.status_code not in BUSY:
                    return answer
                asked = retry_after(answer, wait)
                failure: Exception | None = None
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failure = error
            # who was never there is given up soon, who is busy is waited for
            patience = min(self.patience_s, 4.0) if isinstance(failure, httpx.ConnectError) else self.patience_s
            if isinstance(failure, httpx.UnsupportedProtocol | httpx.InvalidURL) or (
                time.monotonic() - start + asked > patience
            ):
                if failure is None:
                    return answer
                raise self._unreachable(failure) from failure
            time.sleep(asked)
            wait = min(2 * wait, 5)

    def _unreachable(self, error: Exception) -> ClientError:
        start = "start it by: python platform/serve_model.py --model MODEL --allow-root DIR"
        return ClientError(f"the service at {self.url} can't be reached ({error}); {start}")

    def _checked_stream(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            answer.read()
            self._checked(answer)

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.is_success:
            return answer
        kind = ""
        try:
            problem = answer.json()
            sentences = problem.get("errors") or [problem["detail"]]
            kind = str(problem.get("type", "")).rpartition(":")[2]
        except (ValueError, KeyError, AttributeError):
            sentences = [answer.text[:200] or answer.reason_phrase]
        if answer.status_code == 401:
            sentences = ["it asks for a token; give --token or set LDSEG_TOKEN"]
        text = f"the service refused ({answer.status_code}): {'; '.join(sentences[:5])}"
        raise ClientError(text, kind=kind, status=answer.status_code)


def retry_after(answer: httpx.Response, otherwise: float) -> float:
    """Seconds that a busy service asks to wait."""
    given = answer.headers.get("Retry-After", "")
    return float(given) if re.fullmatch(r"\d{1,5}", given) else otherwise
