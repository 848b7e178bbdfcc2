"""platform/services.sh for real: started twice, used by MLflow and the job store, stopped, and all still there."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from ldseg import ROOT

pytestmark = pytest.mark.slow  # an MLflow server is started twice
if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
    pytest.skip("PostgreSQL is not installed", allow_module_level=True)


def ports(number: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    found = [sock.getsockname()[1] for sock in held]
    for sock in held:
        sock.close()
    return found


def runs(process: str) -> bool:
    """One that has ended and is not yet fetched by its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Services:
    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, command: str, *options: str, status: int = 0) -> str:
        line = [str(ROOT / "platform/services.sh"), command, *options, "--home", str(self.home)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=900, env=os.environ | {"LC_ALL": "C.UTF-8"})
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def environment(self) -> dict[str, str]:
        lines = self.run("environment").splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def processes(self) -> list[str]:
        """The first process of each server."""
        return [(self.home / name).read_text().split()[0] for name in ("mlflow.pid", "postgresql/postmaster.pid")]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = Path("/tmp") / f"ldseg-services-{os.getpid()}"  # a socket's path must be short, and postgres must reach it
    made = Services(home)
    postgres, mlflow = ports(2)
    # whom this interpreter is open to is not known, so MLflow runs as who runs the tests
    options = ["--python", sys.executable, "--user", getpass.getuser()]
    try:
        made.run("start", "--postgres-port", str(postgres), "--mlflow-port", str(mlflow), *options)
        yield made
    finally:
        made.run("stop")
        shutil.rmtree(home)


def test_a_second_start_changes_nothing(services: Services) -> None:
    before = services.environment(), services.processes()
    told = services.run("start")
    assert "PostgreSQL answers" in told and "MLflow answers" in told
    assert (services.environment(), services.processes()) == before


def test_passwords_are_known_to_their_owner_alone(services: Services) -> None:
    secrets = services.home / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o600
    passwords = re.findall(r"=([0-9a-f]{48})$", secrets.read_text(), re.M)
    assert len(set(passwords)) == 3
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(password.encode() in line for password in passwords for line in lines)
    logs = [path.read_text() for path in services.home.rglob("*.log")]
    assert logs and not any(password in log for password in passwords for log in logs)


def test_each_database_has_a_role_that_reaches_no_other(services: Services) -> None:
    address = services.environment()["LDSEG_DATABASE_URL"]
    for wrong in (address.replace("/ldseg_jobs", "/ldseg_mlflow"), re.sub(r":[0-9a-f]{48}@", ":guess@", address)):
        with pytest.raises(OperationalError), create_engine(wrong).connect() as connection:
            connection.execute(text("SELECT 1"))


WRITE = """
import mlflow
from ldseg import ROOT
from ldseg import ROOT
from serve.store import JobStore, NewCohort
from ldseg.posterior.plan import SamplePlan
import os, optuna
store = JobStore(os.environ["LDSEG_DATABASE_URL"])
print(store.add(NewCohort(owner="me", plan=SamplePlan.fixed(2)), [("a", "/a")])[0])
optuna.create_study(study_name="first", storage=os.environ["LDSEG_STUDIES_URL"])
mlflow.set_experiment("services")
with mlflow.start_run() as run:
    mlflow.log_metric("dice", 0.5)
    mlflow.log_text("words", "note.txt")
print(run.info.run_id)
"""
READ = """
import json, mlflow, os, optuna, sys
from serve.store import JobStore
store = JobStore(os.environ["LDSEG_DATABASE_URL"])
study = optuna.load_study(study_name="first", storage=os.environ["LDSEG_STUDIES_URL"])
client = mlflow.MlflowClient()
print(json.dumps([store.cohort(sys.argv[1], "me").total, study.study_name, client.get_run(sys.argv[2]).data.metrics,
                  mlflow.artifacts.load_text(f"runs:/{sys.argv[2]}/note.txt")]))
"""


def program(services: Services, code: str, *arguments: str) -> list[str]:
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    quiet |= {"PYTHONPATH": str(ROOT), "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=os.environ | quiet | services.environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")


def test_what_is_written_is_there_after_a_stop_and_a_second_start(services: Services) -> None:
    cohort, run = program(services, WRITE)[:2]
    before, address = services.environment(), services.environment()["MLFLOW_TRACKING_URI"]
    processes = services.processes()
    services.run("stop")
    assert not any(runs(process) for process in processes)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", trust_env=False)
    assert "is down" in services.run("status", status=3)
    services.run("stop")  # a second time is no error
    services.run("start")
    assert services.environment() == before
    found = json.loads(program(services, READ, cohort, run)[0])
    assert found == [1, "first", {"dice": 0.5}, "words"]


def test_a_backup_restored_into_an_empty_place_holds_the_same(services: Services, tmp_path: Path) -> None:
    cohort, run = program(services, WRITE.replace("first", "second"))[:2]
    services.run("backup", str(tmp_path / "backup"))
    assert "exists" in services.run("backup", str(tmp_path / "backup"), status=2)
    other = Services(services.home.with_name(services.home.name + "-restored"))
    postgres, mlflow = ports(2)
    options = ["--python", sys.executable, "--user", getpass.getuser()]
    options += ["--postgres-port", str(postgres), "--mlflow-port", str(mlflow)]
    try:
        other.run("restore", str(tmp_path / "backup"), *options)
        found = json.loads(program(other, READ.replace("first", "second"), cohort, run)[0])
        assert found == [1, "second", {"dice": 0.5}, "words"]
        assert other.environment() != services.environment(), "it has passwords of its own"
        assert "not empty" in other.run("restore", str(tmp_path / "backup"), status=2)
        with (tmp_path / "backup" / "ldseg_jobs.dump").open("ab") as file:
            file.write(b"more")
        assert "not a whole backup" in other.run("restore", str(tmp_path / "backup"), status=2)
    finally:
        other.run("stop")
        shutil.rmtree(other.home)


def test_a_port_that_is_taken_is_told(services: Services) -> None:
    other = Services(services.home.with_name(services.home.name + "-other"))
    with socket.create_server(("127.0.0.1", 0)) as held:
        try:
            told = other.run(
                "start", "--postgres-port", str(held.getsockname()[1]), "--python", sys.executable,
                "--user", getpass.getuser(), status=2,
            )  # fmt: skip
            assert "--postgres-port" in told
        finally:
            other.run("stop")
            shutil.rmtree(other.home)
