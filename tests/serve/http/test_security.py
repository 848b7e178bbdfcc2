"""Tokens: who may ask, and who must be asked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import programs
import pytest
from service import TOKEN, problem
from web import Web

from ldseg import ROOT
from ldseg.commands import serve
from serve.settings import Settings, SettingsError
from serve.tokens import Token, TokenError, find_owner, hash_token, load_tokens

PATHS = ("/v1/model", "/v1/cohorts", "/v1/none", "/metrics")


@pytest.mark.parametrize("given", ["", "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer é"])
def test_without_a_known_token_nothing_but_health_answers(web: Web, given: str) -> None:
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    with httpx.Client(base_url=web.url, headers=headers, trust_env=False) as stranger:
        for path in PATHS:
            refused = stranger.get(path)
            problem(refused, 401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        assert stranger.get("/health/live").status_code == 200


@pytest.mark.parametrize("token", [TOKEN, "another-token"])
def test_each_token_is_taken(web: Web, token: str) -> None:
    answer = httpx.get(f"{web.url}/v1/model", headers={"Authorization": f"bearer {token}"}, trust_env=False)
    assert answer.status_code == 200


def test_a_stranger_is_refused_before_the_body(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=120) as connection:
        connection.sendall(b"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_a_file_of_tokens_holds_hashes_and_limits(tmp_path: Path) -> None:
    toml = tmp_path / "tokens.toml"
    ward, lab = hash_token("x"), hash_token("y")
    toml.write_text(f"[ward]\nsha256 = '{ward}'\nmax_unfinished_cases = 5\n[lab]\nsha256 = '{lab}'\n")
    tokens = load_tokens(toml)
    assert tokens["ward"] == Token(sha256=hash_token("x"), max_unfinished_cases=5, max_priority=0)
    assert find_owner(tokens, "y") == "lab" and find_owner(tokens, "z") is None
    settings = Settings(model="m", tokens=tokens)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("[a]\nsha256 = 'secret'", "64 hex digits"),
        ("[a]\nsha256 = 5", "64 hex digits"),
        (f"[a]\nsha256 = '{'0' * 64}'\nmax = 1", "max"),
        (f"[a]\nsha256 = '{'0' * 64}'\nmax_unfinished_cases = 0", "at least 1"),
        (f"[a]\nsha256 = '{'0' * 64}'\n[b]\nsha256 = '{'0' * 64}'", "the same token"),
        (f"['a b']\nsha256 = '{'0' * 64}'", "letters"),
        ("", "no tokens"),
        ("[", "can't be read"),
    ],
)
def test_tokens_that_cannot_be_used_are_named(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "tokens.toml").write_text(content)
    with pytest.raises(TokenError, match=word):
        load_tokens(tmp_path / "tokens.toml")


@pytest.mark.parametrize("prefix", ["s3://", "/data", "s3:bucket", "a::b://c", "s3://a/../b"])
def test_urls_are_allowed_by_a_place(prefix: str) -> None:
    with pytest.raises(SettingsError, match="allow_urls"):
        Settings(model="m", allow_urls=(prefix,))


@pytest.mark.parametrize(
    ("options", "token", "word"),
    [
        (["--host", "0.0.0.0"], "x", "--behind-proxy"),
        (["--host", "0.0.0.0"], "", "--behind-proxy"),
        (["--host", "0.0.0.0", "--no-token", "--behind-proxy"], "", "no token is asked for"),
        (["--host", "0.0.0.0", "--behind-proxy"], "x", "no model bundle"),
        (["--host", "0.0.0.0", "--certificate", "c.pem", "--key", "k.pem"], "x", "no model bundle"),
        (["--certificate", "c.pem"], "x", "--key"),
        (["--no-token"], "", "no model bundle"),
        (["--no-token"], "x", "contradicts"),
        ([], "", "no model bundle"),
    ],
)
def test_the_program_listens_to_others_only_with_a_token_and_encrypted(
    tmp_path: Path, options: list[str], token: str, word: str
) -> None:
    model = ("--model", str(tmp_path), "--runs", str(tmp_path), "--port", "0")
    ended = programs.run(serve.main, *options, *model, LDSEG_TOKEN=token)
    assert ended.returncode == 2 and word in ended.stderr, ended.stderr


def test_the_clear_token_is_nowhere_once_the_settings_are_read(tmp_path: Path) -> None:
    script = """
import os, subprocess, sys
from pathlib import Path
from ldseg.commands import serve
settings = serve.settings_of(serve.parse(["--model", "m", "--runs", sys.argv[1]]))
print(settings.tokens["default"].sha256)
print(dict(os.environ), settings, Path("/proc/self/environ").read_text(), file=sys.stderr)
subprocess.run(["env"], stdout=2)
"""
    variables = os.environ | {"LDSEG_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == hash_token(TOKEN), done.stderr
    assert TOKEN not in done.stderr and "PYTHONPATH" in done.stderr


def test_without_a_token_one_is_made_up_and_printed_with_a_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LDSEG_TOKEN", raising=False)
    options = [serve.parse(["--model", str(tmp_path), "--port", "8123"]) for _ in range(2)]
    settings = [serve.settings_of(each) for each in options]
    made = [each.made_token for each in options]
    assert made[0] != made[1] and len(made[0]) >= 32
    assert settings[0].tokens["default"].sha256 == hash_token(made[0]) and settings[0].tokens["default"].operator
    serve._announce(options[0], settings[0])
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:8123/#token={made[0]}\n" in said and f"export LDSEG_TOKEN={made[0]}\n" in said
    monkeypatch.setenv("LDSEG_TOKEN", "mine")
    given = serve.parse(["--model", str(tmp_path)])
    serve._announce(given, serve.settings_of(given))
    assert "mine" not in capsys.readouterr().out and not given.made_token
    nobody = serve.parse(["--model", str(tmp_path), "--no-token"])
    assert serve.settings_of(nobody).tokens == {}


def test_the_program_hashes_a_token() -> None:
    assert programs.run(serve.main, "--hash-token", stdin="x\n").stdout.strip() == hash_token("x")
    assert programs.run(serve.main, "--hash-token", stdin="\n").returncode == 2
