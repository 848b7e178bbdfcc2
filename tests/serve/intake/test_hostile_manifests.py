"""Manifests that mean harm get a 4xx soon, with little memory, and the next request works."""

from __future__ import annotations

import io
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from service import ROOT, problem
from web import Web, bounded

JSON = {"Content-Type": "application/json"}
CASE = '{"name": "a", "image": "case_0.nii.gz"}'


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"[" * 30_000, "nested"),
        (b"[" * 100_000, "more parts"),
        (b'{"cases": ' + b'{"a":' * 5_000, "nested"),
        (b'{"samples": ' + b"[" * 39_000 + b"]" * 39_000 + b"}", "nested"),
        (b"[" + b"[]," * 5_000_000 + b"[]]", "more parts"),
        (b"[" + b"0," * 8_000_000 + b"0]", "more parts"),
        (b'{"samples": ' + b"9" * 5_000_000 + b"}", "no JSON"),
        (b'{"samples": 1e400}', "samples"),
        (b'{"samples": NaN}', "NaN"),
        (b'{"seed": -Infinity}', "Infinity"),
        (f'{{"cases": [{CASE}], "seed": 1, "seed": 2}}'.encode(), "twice"),
        (b'{"cases": [{"name": "a", "name": "b", "image": "x"}]}', "twice"),
        (b'{"cases": [{"name": "\xff", "image": "x"}]}', "UTF-8"),
        (b'{"cases": [{"name": "\\ud800", "image": "x"}]}', "name"),
        (b'{"cases": [{"name": "a", "image": "\\ud800"}]}', "image"),
        (b'{"cases": [{"name": "a", "image": "' + b"x" * 10_000_000 + b'"}]}', "image"),
        (b'"' + b"x" * 15_000_000 + b'"', ""),
        (b"null", ""),
    ],
    ids=range(20),
)
def test_json_that_cannot_be_used(web: Web, body: bytes, word: str) -> None:
    with bounded(web):
        answer = web.http.post("/v1/cohorts", content=body, headers=JSON)
        assert word in problem(answer, 422, "invalid-request")["detail"]
    assert len(answer.content) < 10_000


def test_50_megabytes_of_json_are_refused_at_once_and_while_they_come(web: Web) -> None:
    with bounded(web, megabytes=40):
        with socket.create_connection(("127.0.0.1", web.port), timeout=120) as connection:
            token = web.http.headers["Authorization"]
            head = f"POST /v1/cohorts HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 52428800\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
        with socket.create_connection(("127.0.0.1", web.port), timeout=120) as connection:
            connection.sendall(head.encode().replace(b"Content-Length: 52428800", b"Transfer-Encoding: chunked"))
            sent, piece = 0, b"10000\r\n" + b" " * 2**16 + b"\r\n"
            while sent < 50 and not select.select([connection], [], [], 0)[0]:
                connection.sendall(16 * piece)
                sent += 1
            assert 16 <= sent < 30 and connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/xml", "multipart/form-data", "application/json2"])
def test_other_types_are_refused(web: Web, kind: str) -> None:
    answer = web.http.post("/v1/cohorts", content=b"{}", headers={"Content-Type": kind})
    problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "columns"),
        (b"case\na\n", "columns"),
        (b"case,image,label\na,b,c\n", "columns"),
        (b"case,case\na,b\n", "columns"),
        (b"case,image\n", "cases"),
        (b"case,image\na\n", "line 2"),
        (b"case,image\na,b,c\n", "line 2"),
        (b'case,image\n"a,b\n', "CSV"),
        (b"case,image\na,\xff\n", "UTF-8"),
        (b"case,image\na," + b"x" * 200_000, "CSV"),
        (b"case,image\n" + b"a,b\n" * 10_001, "at most"),
        (b"case,image\na,b\na,b\n", "more than once"),
        (b"case,image\n../a,b\n", "file name"),
    ],
)
def test_csv_that_cannot_be_used(web: Web, body: bytes, word: str) -> None:
    with bounded(web):
        answer = web.http.post("/v1/cohorts", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})
        assert word in problem(answer, 422, "invalid-request")["detail"]


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


def test_a_manifest_says_the_same_in_every_form(web: Web) -> None:
    rows = {"case": ["a", "b"], "image": ["case_0.nii.gz", "case_1.nii.gz"]}
    text = "\ufeffcase,image\r\n" + "".join(f"{c},{i}\r\n" for c, i in zip(*rows.values(), strict=True))
    query = {"samples": 3, "seed": 5}
    other = text.removeprefix("\ufeff").replace("case,", " Case ,")
    for kind, body in (
        ("text/csv", text.encode()),
        ("text/csv", other.replace(",", ";").encode("utf-16")),
        ("text/tab-separated-values", other.replace(",", "\t").encode()),
        ("application/vnd.apache.parquet", parquet(rows)),
        ("application/vnd.apache.parquet", parquet({" Case": rows["case"], "IMAGE": rows["image"]})),
    ):
        answer = web.http.post("/v1/cohorts", content=body, headers={"Content-Type": kind}, params=query)
        assert answer.status_code == 202, answer.text
        document = web.finish(answer.json()["id"])
        assert (document["samples"], document["seed"], document["counts"]["done"]) == (3, 5, 2)
        assert [case["name"] for case in document["cases"]] == ["a", "b"]
        wrong = web.http.post("/v1/cohorts", content=body, headers={"Content-Type": kind}, params={"sample": 3})
        assert "sample" in problem(wrong, 422, "invalid-request")["detail"]
    body = json.dumps({"cases": [{"name": "a", "image": "case_0.nii.gz"}]}).encode()
    both = web.http.post("/v1/cohorts", content=body, headers=JSON, params={"samples": 3})
    assert "body" in problem(both, 422, "invalid-request")["detail"]


def lying(body: bytes) -> bytes:
    """A Parquet file whose first page claims to unpack to 2 GB."""
    # PageHeader in Thrift's compact protocol: field 1 (type) i32, field 2 (uncompressed size) i32, ...
    assert body[4:6] == b"\x15\x04" and body[6] == 0x15
    end = 7
    while body[end] & 0x80:
        end += 1
    claim, value = bytearray(), 2 * (2**31 - 1)
    while value:
        claim.append((value & 0x7F) | (0x80 if value > 0x7F else 0))
        value >>= 7
    return body[:6] + b"\x15" + bytes(claim) + body[end + 1 :]


def one_text(count: int) -> pa.Array:
    """The same long text in every row, which is stored once."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 2**20]))


def long_texts() -> bytes:
    """Small packed, 150 MB unpacked."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, pa.schema([("case", "string"), ("image", "string")]), compression="zstd") as writer:
        for k in range(150):
            writer.write_table(pa.table({"case": [str(k)], "image": [f"{k}{'x' * 2**20}"]}))
    return buffer.getvalue()


PARQUET: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "Parquet"),
    "magic": (lambda: b"PAR1", "Parquet"),
    "noise": (lambda: b"PAR1" + os.urandom(1000) + b"PAR1", ""),
    "column missing": (lambda: parquet({"case": ["a"]}), "columns"),
    "numbers": (lambda: parquet({"case": [1], "image": ["b"]}), "text"),
    "null": (lambda: parquet({"case": ["a", None], "image": ["b", "c"]}), "text"),
    "rows": (lambda: parquet({"case": ["a"] * 10_001, "image": ["b"] * 10_001}), "at most"),
    "long": (lambda: parquet({"case": ["a"], "image": ["x" * 2**20]}), "4096"),
    "long and often": (lambda: parquet({"case": [str(k) for k in range(9000)], "image": one_text(9000)}), "4096"),
    "packed": (long_texts, "unpacks"),
    "lying": (lambda: lying(parquet({"case": [str(k) * 99 for k in range(999)], "image": ["b"] * 999})), ""),
}


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_that_cannot_be_used(web: Web, kind: str) -> None:
    make, word = PARQUET[kind]
    body = make()
    with bounded(web, seconds=15, megabytes=60):  # it is read in a process of its own
        answer = web.http.post("/v1/cohorts", content=body, headers={"Content-Type": "application/vnd.apache.parquet"})
        assert word in problem(answer, 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    "image",
    [
        "/etc/passwd",
        "../outside.nii.gz",
        "link.nii.gz",
        "x/../../outside.nii.gz",
        "s3://bucket/a.nii.gz",
        "http://127.0.0.1:9/a.nii.gz",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "simplecache::file:///etc/passwd",
        "upload:../../../etc",
        "upload:" + "0" * 32,
        "C:\\a.nii",
        "data:,x",
    ],
)
def test_what_may_not_be_read_is_refused_before_it_is_read(web: Web, image: str) -> None:
    for kind, body in (
        ("application/json", json.dumps({"cases": [{"name": "a", "image": image}]})),
        ("text/csv", f'case,image\na,"{image}"\n'),
    ):
        answer = web.http.post("/v1/cohorts", content=body.encode(), headers={"Content-Type": kind})
        problem(answer, 403, "path-not-allowed")


def test_a_parquet_page_that_unpacks_to_too_much_ends_the_reader(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "bomb", pa.schema([("case", "string"), ("image", "string")])) as writer:
        text = pa.array(["x" * 2**20])
        image = pa.DictionaryArray.from_arrays(pa.array([0] * 700, pa.int32()), text).cast("string")
        writer.write_table(pa.table({"case": [str(k) for k in range(700)], "image": image}))
    program = ROOT / "serve" / "intake" / "parquet_reader.py"
    code = f"import runpy, sys; sys.argv = ['x', '1000']; m = runpy.run_path({str(program)!r}); "
    code += "m['main'].__globals__['MAX_UNCOMPRESSED'] = 2**40; m['main'].__globals__['MAX_TEXT'] = 2**30; m['main']()"
    with (tmp_path / "bomb").open("rb") as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True, timeout=300)
    assert "memory" in done.stdout, done
