"""A file of tokens that changes under a service that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve.http.middleware import Guard
from serve.http.security import known_tokens
from serve.settings import Settings
from serve.telemetry import Metrics
from serve.tokens import TokenError, hash_token


def write(file: Path, **tokens: str) -> None:
    """In one step, as a mounted secret is replaced."""
    values = {name: {"sha256": hash_token(token)} for name, token in tokens.items()}
    file.with_suffix(".new").write_text(json.dumps(values))
    file.with_suffix(".new").rename(file)


def test_tokens_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    write(file, ward="the old one")
    app = FastAPI()
    app.add_middleware(Guard, settings=Settings(model="m", tokens_file=str(file)), metrics=Metrics())
    app.get("/v1/cohorts")(lambda: None)
    client = TestClient(app, base_url="http://localhost")

    def status(token: str) -> int:
        return client.get("/v1/cohorts", headers={"Authorization": f"Bearer {token}"}).status_code

    assert (status("the old one"), status("the new one")) == (200, 401)
    write(file, ward="the old one", ward_2="the new one")
    assert (status("the old one"), status("the new one")) == (200, 200)
    write(file, ward="the new one")
    assert (status("the old one"), status("the new one")) == (401, 200)
    file.write_text("{")
    assert (status("the old one"), status("the new one")) == (401, 200), "a broken file changes nothing"
    file.unlink()
    assert (status("the old one"), status("the new one"), status("another")) == (401, 200, 401)
    write(file, ward="a third one")
    assert (status("the new one"), status("a third one")) == (401, 200)


def test_a_file_that_never_could_be_read_is_told_at_once(tmp_path: Path) -> None:
    settings = Settings(model="models/some", tokens_file=str(tmp_path / "tokens.json"))
    with pytest.raises(TokenError, match="can't be read"):
        known_tokens(settings)
    Path(settings.tokens_file).write_text("{}")
    with pytest.raises(TokenError, match="holds no tokens"):
        known_tokens(settings)
