"""platform/monitoring: rules, dashboard and scrape example, by Prometheus' own checks and the service's own names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldseg import ROOT
from serve.settings import Settings
from serve.store import Queue
from serve.telemetry import Metrics

FOLDER = ROOT / "platform" / "monitoring"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
SCRAPE = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
MONITOR = yaml.safe_load((ROOT / "kubernetes" / "servicemonitor.yaml").read_text())
OPERATIONS = (ROOT / "docs" / "guides" / "operations.md").read_text()


class Two:
    alive = starting = 1


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """Names that the service's metrics have when they are asked for, each with the names of its labels."""
    metrics = Metrics()
    metrics.watch(Two())
    metrics.case_finished("done")
    metrics.request("GET", "/", 200, 0.1)
    metrics.stages({"read": 0.1})
    text = metrics.text(Queue(queued=1, uploads=0, oldest=None, running={}, failed={})).decode()
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(ldseg_\w+)(?:\{(.*)\})? ", text, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def promtool(*words: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run([program, *map(str, words)], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_is_one_that_is_exported_and_has_the_labels_that_are_asked_for(expression: str) -> None:
    known, named = exported(), re.findall(r"\b((?:ldseg|ray)_\w+)(?:\{([^}]*)\})?", expression)
    assert named or "up{" in expression
    for name, labels in named:
        if name.startswith("ray_"):
            assert name in OPERATIONS, f"{name} is Ray's; say what it is for in the operations guide"
            continue
        assert name in known
        assert set(re.findall(r"(\w+)=", labels)) <= known[name] | {"instance"}


def test_every_alert_has_a_sentence_and_a_severity() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info") and rule["annotations"]["summary"]


def test_reasons_in_rules_are_those_that_cases_fail_by() -> None:
    known = "".join((ROOT / "serve" / path).read_text() for path in ("jobs/runner.py", "store/leases.py"))
    named = [reason for text in expressions() for group in re.findall(r'reason=~?"([^"]+)"', text)
             for reason in group.split("|")]  # fmt: skip
    assert len(set(named)) >= 5 and all(f'"{reason}"' in known for reason in named)


def test_prometheus_takes_the_rules_and_they_are_raised_when_they_should_be() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_prometheus_takes_the_scrape_example_and_its_token(tmp_path: Path) -> None:
    for name in ("alerts.yml", "prometheus.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "ldseg.token").write_text("a token")
    text = (FOLDER / "prometheus.yml").read_text().replace("/etc/prometheus/ldseg.token", "ldseg.token")
    (tmp_path / "prometheus.yml").write_text(text)
    assert "SUCCESS" in promtool("check", "config", tmp_path / "prometheus.yml")


def test_prometheus_takes_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{k}", "expr": query.replace("$__rate_interval", "5m")}
             for k, query in enumerate(queries)]  # fmt: skip
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


def test_the_dashboards_panels_lie_beside_each_other_and_ask_the_source_that_is_chosen() -> None:
    taken: set[tuple[int, int]] = set()
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"source", "instance"}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${source}" for target in panel["targets"])


def test_the_alert_for_a_service_that_is_away_goes_by_the_jobs_name() -> None:
    (down,) = [rule["expr"] for group in RULES["groups"] for rule in group["rules"] if "up{" in rule["expr"]]
    (endpoint,) = MONITOR["spec"]["endpoints"]
    jobs = {job["job_name"] for job in SCRAPE["scrape_configs"]}
    relabelled = {rule["targetLabel"]: rule["replacement"] for rule in endpoint["relabelings"] if "targetLabel" in rule}
    assert down == 'up{job="ldseg"} == 0' and "ldseg" in jobs and relabelled["job"] == "ldseg"


def test_the_monitor_asks_by_a_name_and_a_port_that_the_service_on_kubernetes_has() -> None:
    (service,) = [document for document in yaml.safe_load_all((ROOT / "kubernetes/rayservice.yaml").read_text())
                  if document["kind"] == "RayService"]  # fmt: skip
    arguments: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    (endpoint,) = MONITOR["spec"]["endpoints"]
    address = next(rule["replacement"] for rule in endpoint["relabelings"] if rule.get("targetLabel") == "__address__")
    name, port = address.split(":")
    assert name in Settings.from_dict(arguments).allow_hosts
    web = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert {"containerPort": int(port), "name": endpoint["port"]} in web["ports"]
    assert MONITOR["spec"]["selector"]["matchLabels"] == {"ray.io/serve": f"{service['metadata']['name']}-serve"}
