"""What `ray up cluster.yaml` leaves behind: machines that are set up, and nobody who gets in without the token."""

import time

from cluster.hosts import ROOT
from cluster.rig import NODES


def test_ray_up_brings_all_machines_and_lets_nobody_in_without_the_token(cluster):
    hosts, diary, said = cluster.hosts, cluster.diary, cluster.up()
    assert "installed the project" in said and "made a token" in said
    for name in NODES:
        again = hosts[name].run("bash", "/root/ldseg/platform/node.sh", "setup", str(cluster.runs))
        assert "installed" not in again and "is set up" in again
        assert hosts[name].run("python", "-c", "import ldseg; print(ldseg.__file__)").startswith("/root/ldseg/")
    tokens = {hosts[name].run("cat", "/root/.ray/auth_token") for name in NODES}
    assert len(tokens) == 1 and len(tokens.pop()) == 64
    head = hosts["head"].address
    dashboard = hosts["laptop"].run("curl", "-sS", "-m", "5", f"http://{head}:8265/api/version", check=False)
    assert "refused" in dashboard or "connect" in dashboard, dashboard
    jobs = hosts["laptop"].run(
        "curl", "-s", "-m", "5", "-w", " %{http_code}", f"http://{head}:52365/api/job_agent/jobs/", check=False
    )
    assert jobs.endswith(" 401"), jobs
    join = f"import ray; ray.init('{head}:6379')"
    wrong = ["env", "RAY_AUTH_MODE=token", f"RAY_AUTH_TOKEN={'0' * 64}"]
    refused = hosts["worker2"].run(*wrong, "python", "-c", join, check=False)
    assert "uthentication" in refused, refused[-1000:]
    diary.say("the dashboard is closed, the agents and the control service want the token")


def test_a_folder_that_the_workers_do_not_see_is_told_before_anything_is_trained(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    hosts["head"].run("python", "-m", "ldseg.data.phantom", "--out", "/tmp/mine", "--dims", "2", "--cases", "10")
    start = time.monotonic()
    mine = ["--data", "/tmp/mine", "--space", "phantom2d", "--name", "x"]
    said = hosts["laptop"].run("python", "platform/tune.py", *mine, cwd=ROOT, check=False)
    workers = ", ".join(hosts[name].address for name in ("worker1", "worker2"))
    assert f"tune: /tmp/mine is not there on {workers}; put it on a file system" in said, said
    diary.say(f"data on the head alone is refused, with the machines that lack it ({time.monotonic() - start:.1f} s)")
    assert not list(cluster.runs.glob("train/x-*"))


def test_several_machines_train_one_model(cluster):
    hosts, diary, data = cluster.hosts, cluster.diary, str(cluster.hosts.shared / "data")
    hosts["head"].run("python", "-m", "ldseg.data.phantom", "--out", data, "--dims", "2", "--cases", "20")
    start = time.monotonic()
    options = f"--data {data} --space phantom2d --name together --epochs 2 --workers 3"
    said = hosts["laptop"].run("python", "platform/train.py", *options.split(), cwd=ROOT, check=False)
    assert "trained for 2 epochs" in said, said[-3000:]
    diary.say(f"three machines of one CPU each trained one model together ({time.monotonic() - start:.1f} s)")


def test_a_cluster_that_was_asked_for_and_is_down_is_an_error(cluster):
    hosts = cluster.hosts
    hosts["laptop"].run("ray", "down", "-y", "cluster.yaml", cwd=ROOT)
    said = hosts["laptop"].run("python", "platform/tune.py", "--address", "cluster.yaml", cwd=ROOT, check=False)
    assert "start the cluster with `ray up -y cluster.yaml`" in said, said
