"""Which cluster a program uses, and what it says when it can't."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray
import yaml

from ldseg.orchestration.cluster import packages, preflight
from ldseg.orchestration.cluster.dispatch import for_cluster
from ldseg.orchestration.cluster.jobs import Work, jobs_api
from ldseg.orchestration.cluster.launcher import AwayError, ClusterError, read_cluster_file, tunnel
from ldseg.orchestration.cluster.place import JOB, ROOT, choose

NOWHERE = "10.99.0.1:6379"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", JOB, "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def alone():
    return set()


@contextmanager
def jobs_server(version, token=""):
    """Something that answers as the Jobs API does when it is asked for its version."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            good = not token or self.headers.get("Authorization") == f"Bearer {token}"
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"version": "4", "ray_version": version}).encode() if good else b"Unauthorized")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_file_that_comes_with_the_project_names_no_machine():
    place = choose(nodes=alone)
    assert str(place) == "Ray in this process (cluster.yaml is not filled in)"


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster.aws.yaml"])
def test_the_launcher_takes_the_files(name, monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = prepare_config(yaml.safe_load((ROOT / name).read_text()))
    validate_config(config)
    assert all(Path(path).exists() for path in config["file_mounts"].values())
    head = " ".join(config["head_start_ray_commands"])
    assert "RAY_AUTH_MODE=token" in head and "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in c for c in config["worker_start_ray_commands"] if "ray start" in c)
    kind = config["available_node_types"].get("gpu")
    if kind:
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert (kind["min_workers"], kind["max_workers"]) == (0, 8)


def test_what_is_asked_for_comes_before_ray_address_and_that_before_the_file(monkeypatch, tmp_path):
    with jobs_server(ray.__version__) as url:
        monkeypatch.setenv("RAY_ADDRESS", url)
        assert choose(nodes=alone).reason == "by RAY_ADDRESS"
        assert str(choose("local", nodes=alone)) == "Ray in this process (by --address)"
        assert choose(f"{url}/", nodes=alone).address == url


def test_on_a_machine_of_the_cluster_it_is_joined():
    place = choose(NOWHERE, nodes=lambda: {NOWHERE})
    assert (place.kind, place.address) == ("node", NOWHERE)
    assert choose("auto", nodes=lambda: {NOWHERE}).address == NOWHERE


def test_a_process_that_was_brought_to_the_cluster_stays_there(monkeypatch):
    monkeypatch.setenv(JOB, "{}")
    monkeypatch.setenv("RAY_ADDRESS", NOWHERE)
    assert choose(nodes=alone).kind == "job"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (NOWHERE, "this machine is no node of the cluster at 10.99.0.1:6379; give the URL of its Jobs API"),
        ("auto", "this machine is no node of a cluster"),
        ("ray://10.99.0.1:10001", "ray://10.99.0.1:10001 is no address that can be used here"),
        ("cluster.yaml", "cluster.yaml names no machine yet; fill in the lines marked <<<"),
        ("http://127.0.0.1:9", "Ray does not answer there"),
        ("pyproject.yaml", "describes no cluster of Ray's launcher"),
    ],
)
def test_what_can_not_be_used_is_said_in_a_sentence(address, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ClusterError, match=says.replace("(", r"\(")):
        choose(address, nodes=alone)


def _file(tmp_path, **auth):
    path = tmp_path / "mine.yaml"
    provider = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    path.write_text(yaml.safe_dump({"cluster_name": "mine", "provider": provider, "auth": auth}))
    return path


def test_a_described_cluster_that_is_down_is_no_obstacle_but_one_that_was_asked_for_is(tmp_path):
    path = _file(tmp_path, ssh_user="nobody", ssh_proxy_command="false")
    place = choose(described=path, nodes=alone)
    assert place.kind == "embedded"
    assert place.reason.startswith("mine.yaml describes a cluster, but its head 127.0.0.1 does not answer by SSH")
    with pytest.raises(AwayError, match=r"start the cluster with `ray up -y .*mine.yaml`"):
        choose(str(path), nodes=alone)


def test_the_tunnel_ends_when_the_head_says_nothing(tmp_path):
    with (
        pytest.raises(AwayError, match="does not answer by SSH"),
        tunnel(read_cluster_file(_file(tmp_path, ssh_user="nobody", ssh_proxy_command="false"))),
    ):
        pytest.fail("there is nobody")


def test_another_version_of_ray_is_said_in_a_sentence():
    with jobs_server("2.59.0") as url, pytest.raises(ClusterError) as told, jobs_api(choose(url, nodes=alone)):
        pytest.fail("it let us in")
    assert f"this machine has Ray {ray.__version__} and the cluster has 2.59.0; install the same" in str(told.value)


def test_a_missing_token_is_said_and_the_right_one_lets_in(monkeypatch):
    with jobs_server(ray.__version__, token="secret") as url:
        with pytest.raises(ClusterError, match="wants its token; set RAY_AUTH_TOKEN"):
            choose(url, nodes=alone)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
        with jobs_api(choose(url, nodes=alone)) as client:
            assert client.get_version() == "4"


def test_arguments_mean_the_same_in_the_copy_of_the_tree(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT / "platform")
    given = "--space ../tune_spaces/phantom2d.py --data=/shared/data --address x --attach --trials 3 --detach".split()
    found = for_cluster(given, ["--space"])
    assert found == ["--space", "tune_spaces/phantom2d.py", "--data=/shared/data", "--trials", "3"]
    assert for_cluster(["--attach", "job-1", "--space", "phantom2d"], ["--space"]) == ["--space", "phantom2d"]
    with pytest.raises(ClusterError, match="--runs runs is relative; on a cluster give the whole path"):
        for_cluster(["--runs", "runs"], [])
    (tmp_path / "own.py").touch()
    with pytest.raises(ClusterError, match="lies outside .* which goes to the cluster; move it there"):
        for_cluster(["--space", str(tmp_path / "own.py")], ["--space"])


def test_a_job_runs_the_program_of_the_tree_with_its_arguments_as_they_are():
    work = Work(program="tune", name="a", arguments=("--data", "/with space/x"))
    assert work.entrypoint() == "python -u platform/tune.py --data '/with space/x'"


def _sight(**changes):
    good = {"no_data": "", "sees_home": True, "refused": "", "different": ()}
    return preflight.Sight(**{**good, **changes})


@pytest.mark.parametrize(
    ("sight", "unseen", "says"),
    [
        ({"no_data": "is not there"}, [], "/d is not there on b; put it on a file system that all machines"),
        ({"sees_home": False}, [], "/h on b is another folder than here"),
        ({}, ["b"], "/h on b is another folder than here"),
        ({"refused": "Permission denied"}, ["b"], r"nothing can be written to /h on b \(Permission denied\)"),
        ({"different": ("torch 2.12.0 and not 2.13.0",)}, [], "b has other packages than this tree .torch 2.12.0"),
    ],
)
def test_a_machine_that_would_fail_every_training_is_named(sight, unseen, says):
    with pytest.raises(ClusterError, match=says):
        preflight._judge({"a": _sight(), "b": _sight(**sight)}, unseen, "/d", Path("/h"))
    with pytest.raises(ClusterError, match=r"s3://d can't be read on b \(no credentials\); allow it there"):
        preflight._judge({"a": _sight(), "b": _sight(no_data="no credentials")}, [], "s3://d", Path("/h"))
    preflight._judge({"a": _sight()}, [], "/d", Path("/h"))


def test_the_lock_is_compared_with_what_is_installed(tmp_path):
    assert packages.differences(ROOT / "constraints.txt") == []
    other = tmp_path / "constraints.txt"
    other.write_text("# comment\nray==2.59.0\nno-such-package==1.0  # why\nnumpy\n")
    found = packages.differences(other)
    assert found == [f"ray {ray.__version__} and not 2.59.0", "no-such-package not installed and not 1.0"]
    assert packages.in_words(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
