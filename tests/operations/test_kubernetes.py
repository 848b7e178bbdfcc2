"""The files for Kubernetes, held against its own types, Ray Serve's schema and the fields that KubeRay knows.

The schemas of KubeRay and of Prometheus' operator come with no package, so the fields of their own few layers are
listed here; everything below a pod's template, and every other object, is checked field by field against the types of
the Kubernetes client.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import models
from ray.serve.schema import ServeDeploySchema

from ldseg import ROOT
from serve.settings import Settings

FILES = sorted((ROOT / "kubernetes").glob("*.yaml"))
PLAIN = {
    "PersistentVolumeClaim": models.V1PersistentVolumeClaim,
    "NetworkPolicy": models.V1NetworkPolicy,
}
# name of a field: what it holds. A class of the client, a layer of KubeRay's by its name, or a type of Python
KUBERAY: dict[str, dict[str, Any]] = {
    "RayService": {"serveConfigV2": str, "rayClusterConfig": "RayCluster", "serveService": models.V1Service},
    "RayJob": {
        "entrypoint": str, "rayClusterSpec": "RayCluster", "submitterPodTemplate": models.V1PodTemplateSpec,
        "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
        "activeDeadlineSeconds": int, "runtimeEnvYAML": str, "submissionMode": str, "suspend": bool,
    },
    "RayCluster": {
        "rayVersion": str, "headGroupSpec": "Head", "workerGroupSpecs": ["Workers"], "enableInTreeAutoscaling": bool,
        "autoscalerOptions": "Autoscaler", "authOptions": "Auth",
    },
    "Auth": {"mode": str, "secretName": str},
    "ServiceMonitor": {"selector": models.V1LabelSelector, "endpoints": ["Endpoint"]},
    "Endpoint": {
        "port": str, "path": str, "interval": str, "scheme": str, "authorization": "Authorization",
        "relabelings": ["Relabeling"],
    },
    "Authorization": {"type": str, "credentials": models.V1SecretKeySelector},
    "Relabeling": {"action": str, "targetLabel": str, "replacement": str, "regex": str, "sourceLabels": [str]},
    "Head": {"rayStartParams": {str: str}, "template": models.V1PodTemplateSpec, "serviceType": str},
    "Workers": {
        "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": {str: str},
        "template": models.V1PodTemplateSpec,
    },
    "Autoscaler": {
        "idleTimeoutSeconds": int, "upscalingMode": str, "resources": models.V1ResourceRequirements,
        "securityContext": models.V1SecurityContext, "env": [models.V1EnvVar],
    },
}  # fmt: skip
NEEDED = {
    "RayService": {"rayClusterConfig", "serveConfigV2"},
    "RayCluster": {"headGroupSpec", "rayVersion"},
    "Head": {"rayStartParams", "template"},
    "Workers": {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}
SIMPLE = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def faults(value: Any, kind: Any, at: str) -> list[str]:
    """What is wrong with a value that is to be of a kind."""
    if isinstance(kind, type) and hasattr(kind, "openapi_types"):
        names = {name: field for field, name in kind.attribute_map.items()}
        fields = {name: kind.openapi_types[field] for name, field in names.items()}
        return _object(value, fields, set(), at)
    if isinstance(kind, str) and kind in KUBERAY:
        return _object(value, KUBERAY[kind], NEEDED.get(kind, set()), at)
    if isinstance(kind, list) or (isinstance(kind, str) and kind.startswith("list[")):
        of = kind[0] if isinstance(kind, list) else kind[5:-1]
        if not isinstance(value, list):
            return [f"{at} is no list"]
        return [fault for k, item in enumerate(value) for fault in faults(item, of, f"{at}[{k}]")]
    if isinstance(kind, dict) or (isinstance(kind, str) and kind.startswith("dict[")):
        good = isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item)
        return [] if good else [f"{at} holds more than strings: {value}"]
    if isinstance(kind, str) and hasattr(models, kind):
        return faults(value, getattr(models, kind), at)
    if kind in ("object", "datetime"):
        return []
    kind = SIMPLE.get(kind, kind)
    return [] if isinstance(value, kind) and not (kind is int and value is True) else [f"{at} is {value!r}"]


def _object(value: Any, fields: dict[str, Any], needed: set[str], at: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{at} is no object"]
    found = [f"{at}.{name} is no field" for name in value if name not in fields]
    found += [f"{at}.{name} is missing" for name in sorted(needed - set(value))]
    return found + [
        fault for name in value if name in fields for fault in faults(value[name], fields[name], f"{at}.{name}")
    ]


def documents() -> list[dict[str, Any]]:
    return [document for path in FILES for document in yaml.safe_load_all(path.read_text())]


def check(document: dict[str, Any]) -> list[str]:
    kind = document["kind"]
    if kind in PLAIN:
        return faults(document, PLAIN[kind], kind)
    layers = {"apiVersion": str, "kind": str, "metadata": models.V1ObjectMeta, "spec": kind}
    return _object(document, layers, set(layers), kind)


def pods(value: Any) -> list[dict[str, Any]]:
    """Every pod's spec below."""
    if isinstance(value, list):
        return [pod for item in value for pod in pods(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if "containers" in value else []
    return own + [pod for item in value.values() for pod in pods(item)]


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_every_field_is_one_and_holds_what_it_should(document: dict[str, Any]) -> None:
    assert check(document) == []


def test_mistakes_are_seen() -> None:
    service = next(document for document in documents() if document["kind"] == "RayService")
    spec = service["spec"]["rayClusterConfig"]
    container = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    container["resources"]["limits"]["cpu"] = 4
    container["env"][0]["value"] = 1
    spec["workerGroupSpecs"][1]["maxReplicas"] = "16"
    del spec["rayVersion"]
    told = "\n".join(check(service))
    for word in ("livenesProbe is no field", "more than strings", "env[0].value is 1", "maxReplicas is '16'"):
        assert word in told
    assert "rayVersion is missing" in told


@pytest.mark.parametrize("document", documents(), ids=lambda document: document["kind"])
def test_no_pod_is_root_and_each_has_limits(document: dict[str, Any]) -> None:
    for pod in pods(document):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]) & set(container["resources"]["limits"])
        claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod.get("volumes", [])]
        assert container["name"] == "ray-job-submitter" or "ldseg" in claims
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in pod.get("volumes", [])}


def test_the_service_is_a_serve_config_whose_settings_fit_its_pods() -> None:
    service = next(document for document in documents() if document["kind"] == "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    settings = Settings.from_dict(application.args)
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]
    web, samplers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    paths = [mount["mountPath"] for mount in web["template"]["spec"]["containers"][0]["volumeMounts"]]
    for place in (settings.home, *settings.allow_roots, settings.tokens_file):
        assert any(Path(place).is_relative_to(path) for path in paths), place
    (ingress,) = application.deployments
    # two may be there during an update, the one before and the new one; and a custom resource is named alike
    resources = ingress.ray_actor_options.resources
    (words,) = shlex.split(web["rayStartParams"]["resources"])
    assert resources == {"service": 0.5} and yaml.safe_load(words) == {"service": 1}
    gpus = samplers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert settings.gpus_per_replica == float(gpus) and settings.most_replicas >= samplers["maxReplicas"]
    assert config.http_options.port == 8000 and head["rayStartParams"]["num-cpus"] == "0"


def test_probes_ask_what_they_are_for() -> None:
    service = next(document for document in documents() if document["kind"] == "RayService")
    web, samplers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    asked = {
        kind: web["template"]["spec"]["containers"][0][f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    # a sampler must not be ended because the service on another pod does not answer
    assert "livenessProbe" not in samplers["template"]["spec"]["containers"][0]


def clusters() -> list[dict[str, Any]]:
    return [document["spec"].get("rayClusterConfig", document["spec"].get("rayClusterSpec"))
            for document in documents() if document["apiVersion"].startswith("ray.io")]  # fmt: skip


def test_versions_are_those_of_the_project() -> None:
    ray = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert ray and {cluster["rayVersion"] for cluster in clusters()} == {ray[1]}


def test_ray_asks_for_a_token_that_the_operator_makes() -> None:
    assert [cluster["authOptions"] for cluster in clusters()] == [{"mode": "token"}] * 2
    named = {item["name"] for document in documents() for pod in pods(document) for item in pod["containers"][0]["env"]}
    assert not {name for name in named if name.startswith("RAY_AUTH")}, "it would come before the operator's"


def test_no_secret_is_in_the_files() -> None:
    for path in FILES:
        assert not re.search(r"://[^/\s:]+:[^@\s]+@|[0-9a-f]{40}", path.read_text())
    keys = {item["valueFrom"]["secretKeyRef"]["key"] for document in documents() for pod in pods(document)
            for item in pod["containers"][0]["env"] if "valueFrom" in item}  # fmt: skip
    assert keys == {"database-url", "mlflow-uri"}


def test_a_search_goes_on_with_the_study_that_is_there(tmp_path: Path) -> None:
    job = next(document for document in documents() if document["kind"] == "RayJob")
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "/opt/ldseg/kubernetes/search.sh"
    words[words.index("--runs") + 1] = str(tmp_path)

    def run(*options: str) -> list[str]:
        done = subprocess.run(
            [str(ROOT / "kubernetes/search.sh"), *options], env={"PYTHON": "echo", "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.split() or [done.stderr]

    assert run(*words) == ["platform/tune.py", *words]
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "first.db").touch()
    assert run(*words) == ["platform/tune.py", *words, "--resume"]
    assert "--name" in run("--runs", str(tmp_path))[0]
    known = (ROOT / "ldseg/commands/tune.py").read_text()
    assert all(f'"{word}"' in known for word in words if word.startswith("--"))
