"""Files, tables and the zip: conditions, ranges, names, memory."""

from __future__ import annotations

import hashlib
import io
import resource
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from service import problem
from web import Web

from serve.http.archive import stream_zip


@pytest.fixture
def href(web: Web, done: str) -> str:
    case = web.http.get(f"/v1/cohorts/{done}/cases/a").json()
    return str(case["files"]["label"]["href"])


def test_the_etag_is_the_sha256_of_the_bytes(web: Web, done: str, href: str) -> None:
    for path in (href, f"/v1/cohorts/{done}/table.csv", f"/v1/cohorts/{done}/table.parquet"):
        answer = web.http.get(path)
        assert answer.status_code == 200
        assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
        assert answer.headers["content-disposition"].startswith("attachment; filename=")
        assert answer.headers["x-content-type-options"] == "nosniff"
        for tags in (answer.headers["etag"], f'"x", W/{answer.headers["etag"]}', "*"):
            known = web.http.get(path, headers={"If-None-Match": tags})
            assert known.status_code == 304 and not known.content and known.headers["etag"] == answer.headers["etag"]
        assert web.http.get(path, headers={"If-None-Match": '"x"'}).status_code == 200
        head = web.http.head(path)
        assert head.status_code == 200 and not head.content
        assert head.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=3-3", slice(3, 4)),
    ],
)
def test_a_range_is_that_part_of_the_file(web: Web, href: str, asked: str, part: slice) -> None:
    whole = web.http.get(href).content
    answer = web.http.get(href, headers={"Range": asked})
    assert answer.status_code == 206 and answer.content == whole[part]
    first, last = range(len(whole))[part][0], range(len(whole))[part][-1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"


def test_a_range_outside_is_refused_and_nonsense_is_the_whole(web: Web, href: str) -> None:
    whole = web.http.get(href)
    for asked in (f"bytes={len(whole.content)}-", "bytes=999999999-", "bytes=-0"):
        refused = web.http.get(href, headers={"Range": asked})
        problem(refused, 416, "range-not-satisfiable")
        assert refused.headers["content-range"] == f"bytes */{len(whole.content)}"
    for asked in ("bytes=9-3", "lines=0-1", "bytes=-", "bytes=0-1,4-5", "bytes=x"):
        assert web.http.get(href, headers={"Range": asked}).status_code == 200
    assert web.http.get(href, headers={"Range": "bytes=0-0", "If-Range": '"other"'}).status_code == 200
    assert web.http.get(href, headers={"Range": "bytes=0-0", "If-Range": whole.headers["etag"]}).status_code == 206


def test_the_zip_holds_every_file_of_the_finished_cases_and_the_tables(web: Web, done: str) -> None:
    answer = web.http.get(f"/v1/cohorts/{done}/archive.zip")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        cases = {name: web.http.get(f"/v1/cohorts/{done}/cases/{name}").json() for name in ("a", "b ö")}
        expected = {
            f"maps/{name}/{entry['name']}": entry["sha256"]
            for name, case in cases.items()
            for entry in case["files"].values()
        }
        assert set(archive.namelist()) == {*expected, "table.parquet", "table.csv"}
        assert {name: hashlib.sha256(archive.read(name)).hexdigest() for name in expected} == expected
        assert pq.read_table(io.BytesIO(archive.read("table.parquet"))).num_rows == 3
        assert archive.read("table.csv") == web.http.get(f"/v1/cohorts/{done}/table.csv").content


@pytest.mark.slow
def test_a_zip_beyond_4_gib_takes_no_memory_and_is_whole(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2**32 + 5)  # a hole: it takes no disk
    target = tmp_path / "made.zip"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with target.open("wb") as file:
        for piece in stream_zip([("big", big), ("gone", tmp_path / "gone")], [("small", b"x")]):
            file.seek(len(piece), 1) if not piece.strip(b"\0") else file.write(piece)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
    with zipfile.ZipFile(target) as archive:
        assert archive.getinfo("big").file_size == 2**32 + 5
        assert archive.read("small") == b"x" and archive.read("missing.json") == b'["gone"]'
