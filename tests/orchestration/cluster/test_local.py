"""A Ray of a program's own: its token, its files, and what of the environment is as it was."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from listeners import listeners

from ldseg.orchestration.cluster import connection
from ldseg.orchestration.cluster.launcher import ClusterError
from ldseg.orchestration.cluster.local import private_folder, secluded

OWN = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of a cluster", "LDSEG_TOKEN": "of a service"}
TWICE = """
import json, os
from pathlib import Path
import ray
from ldseg.orchestration.cluster import connection

def environment():
    return {name: value for name, value in os.environ.items() if name.startswith(("RAY_AUTH", "LDSEG"))}

seen, before = [], environment()
for _ in range(2):
    connection.connect(num_cpus=1, object_store_mb=80, dashboard=False)
    path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    worker = ray.get(ray.remote(environment).remote())
    connection.shutdown()
    seen.append({"token": token, "worker": worker, "left": path.exists(), "as before": environment() == before})
print(json.dumps(seen))
"""
MEET = """
import os, socket, sys
import torch.distributed
from ldseg.orchestration.training.rendezvous import listen_on_loopback

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
listen_on_loopback()
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
torch.distributed.init_process_group("gloo", init_method="env://", rank=0, world_size=1)
print("met", flush=True)
sys.stdin.read()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    connection.shutdown()  # a Ray of other tests would be asked for without its token here
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path / f"ldseg-{os.getuid()}"


def test_each_start_has_a_token_of_its_own_and_leaves_nothing(folder):
    tokens = set()
    for _ in range(2):
        with secluded() as files:
            path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            tokens.add(path.read_text())
            assert os.environ["RAY_AUTH_MODE"] == "token" and not {"RAY_AUTH_TOKEN", "LDSEG_TOKEN"} & set(os.environ)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.parent == files.parent == folder
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not path.exists() and "RAY_AUTH_TOKEN_PATH" not in os.environ
        assert {name: os.environ[name] for name in OWN} == OWN
    assert len(tokens) == 2 and all(len(token) == 64 for token in tokens)


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(folder):
    left = private_folder() / "token-left"
    left.touch()
    with secluded():
        assert not left.exists()
        first = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        with secluded():
            assert first.exists() and os.environ["RAY_AUTH_TOKEN_PATH"] != str(first)
        assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(first) and first.exists()


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_can_enter_is_refused(folder, kind):
    if kind == "open":
        folder.mkdir(mode=0o755)
    elif kind == "link":
        folder.symlink_to(folder.parent)
    else:
        folder.touch()
    with (
        pytest.raises(ClusterError, match=r"not this user's alone \(mode 700\); remove it, or name another"),
        secluded(),
    ):
        pytest.fail("it was taken")


def test_ray_starts_again_in_one_process_with_a_new_token_and_the_users_own_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_TMPDIR")  # the path of a socket can't be as long as that of a test's folder
    theirs = tmp_path / "home" / ".ray" / "auth_token"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("of a cluster")
    done = subprocess.run(
        [sys.executable, "-c", TWICE], env=os.environ | {"HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert len({first["token"], second["token"], theirs.read_text()}) == 3
    assert os.listdir(theirs.parent) == ["auth_token"] and theirs.read_text() == "of a cluster"
    for seen in (first, second):
        assert seen["as before"] and not seen["left"]
        assert seen["worker"]["RAY_AUTH_MODE"] == "token" and not set(OWN) - {"RAY_AUTH_MODE"} & set(seen["worker"])


def test_workers_of_a_training_meet_on_the_loopback():
    with subprocess.Popen(
        [sys.executable, "-c", MEET], env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as worker:  # fmt: skip
        assert worker.stdout.readline() == "met\n"
        found = listeners([worker.pid])
        worker.communicate()
    assert found and not [listener for listener in found if listener.beyond_loopback]
