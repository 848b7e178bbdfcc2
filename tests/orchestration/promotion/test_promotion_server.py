"""The registry behind an MLflow server, which checks more than SQLite does."""

import os
import subprocess
import sys

import pytest
from registered import free_port, mlflow_server, register, scores

from ldseg import ROOT
from ldseg.orchestration.promotion.champion import show_history
from ldseg.orchestration.promotion.gates import Gates
from ldseg.orchestration.promotion.promote import promote, rollback
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import resolve_model


@pytest.fixture
def server(tmp_path, monkeypatch):
    with mlflow_server(tmp_path, free_port()) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield url


@pytest.mark.slow
def test_registration_promotion_rollback_and_history_also_work_over_http(server, tmp_path):
    tracker = mlflow_client.connect(tmp_path)
    assert tracker.uri == server
    bundles = [register(tracker, tmp_path, "http", seed, scores(0.9 + 0.02 * seed))[0] for seed in range(2)]
    assert promote(tracker, "http", 1, Gates()).passed and promote(tracker, "http", 2, Gates()).passed
    found = resolve_model("models:/http@champion", tmp_path)
    assert found.name == bundles[1].digest.removeprefix("sha256:")
    assert rollback(tracker, "http").version == 1
    text, intact = show_history(tracker, "http")
    assert intact and "the chain of 3 records holds" in text
    command = [sys.executable, str(ROOT / "platform" / "promote.py"), "http", "--history", "--runs", str(tmp_path)]
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(command, env=os.environ | away, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("promote: MLflow does not answer as it should")
    assert len(done.stderr.splitlines()) == 1
