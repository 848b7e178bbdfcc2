"""Who asked for what, as lines of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
from service import TOKEN
from web import Web

from ldseg.bundle import Bundle
from serve.audit import ACCESS, AUDIT, Logs, action

NAME = "DOE_JOHN_1950"


def lines(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def told_of(web: Web, name: str, count: int, **wanted: object) -> list[dict[str, object]]:
    """So many lines with these values: a line is written when its answer has gone."""
    deadline = time.monotonic() + 60
    while True:
        file = lines(web.home / "service" / "logs", name)
        found = [line for line in file if line.items() >= wanted.items()]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, file[-count:]
        time.sleep(0.01)


def test_what_is_done_with_data_is_told_by_ids(web: Web) -> None:
    cohort = web.post({NAME: "case_0.nii.gz"})
    web.finish(cohort)
    href = web.http.get(f"/v1/cohorts/{cohort}/cases/{NAME}").json()["files"]["label"]["href"]
    web.http.get(href, headers={"X-Request-ID": "mine"})
    web.http.get(f"/v1/cohorts/{cohort}/table.csv")
    web.http.get(href, headers={"Authorization": "Bearer another-token"})
    web.http.delete(f"/v1/cohorts/{cohort}")
    web.http.delete(f"/v1/cohorts/{cohort}?forget=true")
    told = told_of(web, AUDIT, 6, cohort=cohort)
    assert [(line["action"], line["owner"], line["status"]) for line in told] == [
        ("post", "default", 202),
        ("download", "default", 200),
        ("download", "default", 200),
        ("download", "other", 404),
        ("cancel", "default", 200),
        ("forget", "default", 200),
    ]
    label = told[1]
    assert label["file"] == "label" and label["request"] == "mine" and label["client"] == "127.0.0.1"
    assert label["case"] == told[3]["case"] and len(str(label["case"])) == 16
    refused = httpx.get(f"{web.url}/v1/model", headers={"Authorization": "Bearer none"}, trust_env=False)
    assert refused.status_code == 401
    logs = web.home / "service" / "logs"
    told_of(web, ACCESS, 1, owner="", status=401, route="none")
    assert logs.stat().st_mode & 0o777 == 0o700
    for name in (ACCESS, AUDIT):
        assert "DOE" not in (logs / name).read_text() and TOKEN not in (logs / name).read_text()


def test_names_are_told_where_that_is_wanted(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    web = Web(bundle.path, tmp_path, allow_roots=[str(data)], log_names=True).wait_ready()
    try:
        cohort = web.post({NAME: "case_0.nii.gz"})
        web.http.get(f"/v1/cohorts/{cohort}/cases/{NAME}/files/label")
        told_of(web, AUDIT, 1, action="download", case=NAME)
    finally:
        web.stop()


def test_an_upload_is_told_by_its_id(web: Web, data: Path) -> None:
    image = (data / "case_0.nii.gz").read_bytes()
    upload = web.http.post("/v1/uploads", files={"image": (f"{NAME}.nii.gz", image)}).json()["upload"]
    told_of(web, AUDIT, 1, action="upload", upload=upload)


def test_acts_are_told_from_looking() -> None:
    assert action("GET", "/v1/cohorts/{cohort}", {}) == action("HEAD", "/v1/cohorts/{cohort}/archive.zip", {}) == ""
    assert action("GET", "/v1/cohorts/{cohort}/archive.zip", {}) == "download"
    assert action("DELETE", "/v1/cohorts/{cohort}", {"forget": "false"}) == "cancel"


def test_a_log_that_was_moved_away_begins_anew_and_one_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    logs = Logs(tmp_path / "logs", names=False)
    logs.request({}, "post", {"cohort": "a"})
    (tmp_path / "logs" / AUDIT).rename(tmp_path / "logs" / "old")
    logs.request({}, "post", {"cohort": "b"})
    assert [line["cohort"] for line in lines(tmp_path / "logs", AUDIT)] == ["b"]
    (tmp_path / "file").touch()
    Logs(tmp_path / "file" / "logs", names=False).request({}, "post", {})
