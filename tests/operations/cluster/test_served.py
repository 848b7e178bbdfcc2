"""`serve deploy` after `ray up`: the model that a search found there, cohorts over HTTP, a machine lost meanwhile."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

from cluster.hosts import ROOT
from cluster.rig import NODES, Cluster

TOKEN = "a-token-of-the-laptop"
SERVE = "cd ldseg && serve deploy serve/config.yaml"
CASES = [f"phantom2d_{number:04d}" for number in range(24)]
DRAWS = {"samples": 48, "steps": 200, "seed": 5}  # long enough to lose a machine in


def test_a_model_that_was_searched_promoted_and_served_there_segments_a_cohort_while_a_machine_is_lost(cluster):
    hosts, diary, laptop = cluster.hosts, cluster.diary, cluster.hosts["laptop"]
    configure(cluster)
    cluster.up()
    search = ["python", "platform/tune.py", "--trials", "1", "--epochs", "2"]
    laptop.run(*search, cwd=ROOT)
    lower = r"s/^(dice|worst_decile_dice|structure_dice) = .*/\1 = 0/"
    laptop.run("bash", "-c", f"sed -E '{lower}' platform/gates.toml > gates.toml", cwd=ROOT)
    laptop.run("python", "platform/promote.py", "ldseg", "challenger", "--gates", "gates.toml", cwd=ROOT)
    diary.say(f"$ {' '.join(search)}, and its model is the champion")
    start = time.monotonic()
    laptop.run("ray", "exec", "cluster.yaml", SERVE, cwd=ROOT)
    diary.say(f"$ ray exec cluster.yaml '{SERVE}' ({time.monotonic() - start:.1f} s)")
    diary.wait("the service is ready", lambda: status(cluster, "/health/ready") == 200, 300)
    assert status(cluster, "/v1/cohorts", token="") == 401

    start = time.monotonic()
    quiet = post(cluster)
    diary.wait("two machines sample", lambda: len(samplers(cluster)) == 2, 120)
    diary.wait(f"{len(CASES)} cases are done", lambda: counts(cluster, quiet)["done"] == len(CASES), 400)
    diary.say(f"undisturbed cohort: {time.monotonic() - start:.1f} s")

    cohort, start = post(cluster), time.monotonic()
    diary.wait("three cases of another cohort are done", lambda: counts(cluster, cohort)["done"] >= 3, 200)
    victim = next(name for name in samplers(cluster) if name not in ingress(cluster) and name != "head")
    hosts.link(victim, False)
    diary.say(f"unplugged {victim}, which sampled as {', '.join(samplers(cluster))} did; {counts(cluster, cohort)}")
    diary.wait("the cluster knows that a machine is away", lambda: len(cluster.alive()) == 2, 150)
    diary.wait("every case is done", lambda: counts(cluster, cohort)["done"] == len(CASES), 600)
    diary.say(f"the cohort took {time.monotonic() - start:.1f} s; {counts(cluster, cohort)}")
    assert digests(cluster, cohort) == digests(cluster, quiet), "the same bytes"
    hosts.link(victim, True)
    diary.say("plugged it in again")
    diary.wait("the machine is back in the cluster", lambda: len(cluster.alive()) == 3, 240)


def test_an_update_under_load_fails_no_request(cluster):
    laptop, diary = cluster.hosts["laptop"], cluster.diary
    cohort = post(cluster)
    asked = f"curl -s -m 60 -o /dev/null -w '%{{http_code}}\\n' -H '{auth()}' {url(cluster)}/v1/cohorts/{cohort}"
    loop = laptop.start("bash", "-c", f"while [ ! -e /tmp/enough ]; do {asked}; sleep 0.1; done >/tmp/answers")
    configure(cluster, max_samples=128)
    changed = ["serve/config.yaml", "/root/ldseg/serve/config.yaml"]
    laptop.run("ray", "rsync-up", "cluster.yaml", *changed, cwd=ROOT)
    laptop.run("ray", "exec", "cluster.yaml", SERVE, cwd=ROOT)
    diary.say("`serve deploy` with another limit, while a cohort is in work and a client asks all the time")
    too_many = lambda: "at most 128" in ask(cluster, "/v1/cohorts", {**cohort_of(cluster), "samples": 1000})  # noqa: E731
    diary.wait("the new limit holds", too_many, 240)
    diary.wait("every case is done", lambda: counts(cluster, cohort)["done"] == len(CASES), 600)
    laptop.run("touch", "/tmp/enough")
    loop.wait(90)
    answers = laptop.run("cat", "/tmp/answers").split()
    diary.say(f"{len(answers)} requests meanwhile, answered {' and '.join(sorted(set(answers)))}")
    assert len(answers) > 50 and set(answers) == {"200"}


def test_ray_down_ends_the_service_too(cluster):
    cluster.hosts["laptop"].run("ray", "down", "-y", "cluster.yaml", cwd=ROOT)
    assert status(cluster, "/health/live") == 0
    cluster.diary.wait("no machine runs Ray", lambda: not any(cluster.raylets(name) for name in NODES), 180)


def configure(cluster: Cluster, **more: object) -> None:
    """Fill in serve/config.yaml on the laptop."""
    text, data = (ROOT / "serve" / "config.yaml").read_text(), cluster.runs / "phantoms"
    token = json.dumps({"laptop": {"sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}})
    head = cluster.hosts["head"].address
    reach = {"host": "0.0.0.0", "behind_proxy": "true", "allow_hosts": f"[{head}]"}
    changes = reach | {"home": str(cluster.runs), "allow_roots": f"[{data}]", "tokens": token}
    for key, value in changes.items():
        added = "".join(f"\n      {name}: {json.dumps(new)}" for name, new in more.items()) if key == "home" else ""
        text, found = re.subn(rf"(?m)^( +{key}: ).*$", lambda m, v=value, a=added: f"{m[1]}{v}{a}", text)  # noqa: B023
        assert found == 1, key
    cluster.hosts["laptop"].run("bash", "-c", 'printf %s "$0" > serve/config.yaml', text, cwd=ROOT)


def url(cluster: Cluster) -> str:
    """Of the service, as the laptop reaches it."""
    return f"http://{cluster.hosts['head'].address}:8000"


def auth(token: str = TOKEN) -> str:
    return f"Authorization: Bearer {token}"


def status(cluster: Cluster, path: str, token: str = TOKEN) -> int:
    """The status of an answer, 0 if there is none."""
    curl = ["curl", "-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "-H", auth(token)]
    return int(cluster.hosts["laptop"].run(*curl, url(cluster) + path, check=False))


def ask(cluster: Cluster, path: str, content: dict[str, Any] | None = None) -> str:
    """What is answered to a GET, or to a POST of this content."""
    posted = ["-H", "Content-Type: application/json", "-d", json.dumps(content)] if content else []
    curl = ["curl", "-sS", "-m", "60", "-H", auth(), *posted]
    return cluster.hosts["laptop"].run(*curl, url(cluster) + path)


def cohort_of(cluster: Cluster) -> dict[str, Any]:
    """What is posted: the phantoms that the search was made on."""
    folder = cluster.runs / "phantoms" / "imagesTr"
    return {"cases": [{"name": name, "image": f"{folder}/{name}.nii.gz"} for name in CASES], **DRAWS}


def post(cluster: Cluster) -> str:
    """A new cohort's id."""
    return str(json.loads(ask(cluster, "/v1/cohorts", cohort_of(cluster)))["id"])


def counts(cluster: Cluster, cohort: str) -> dict[str, int]:
    """How many of its cases are queued, running, done, failed."""
    return dict(json.loads(ask(cluster, f"/v1/cohorts/{cohort}?cases=false"))["counts"])


def digests(cluster: Cluster, cohort: str) -> dict[str, dict[str, str]]:
    """The checksum of each file of each case."""
    found = {}
    for name in CASES:
        files = json.loads(ask(cluster, f"/v1/cohorts/{cohort}/cases/{name}"))["files"]
        found[name] = {key: entry["sha256"] for key, entry in files.items()}
    return found


def samplers(cluster: Cluster) -> list[str]:
    """The machines that have a sampler."""
    return [name for name in NODES if cluster.hosts[name].run("pgrep", "-f", "^ray::Sampler", check=False)]


def ingress(cluster: Cluster) -> list[str]:
    """The machines that have the service's HTTP process."""
    return [name for name in NODES if cluster.hosts[name].run("pgrep", "-f", "^ray::ServeReplica", check=False)]
