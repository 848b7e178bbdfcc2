"""`ray up cluster.yaml && python platform/tune.py`, for real: a laptop and three machines with their own networks."""

import os
import time

from cluster.hosts import ROOT
from cluster.rig import NODES, Terminal

TRIALS, EPOCHS = 3, int(os.environ.get("LDSEG_CLUSTER_EPOCHS", "40"))
SEARCH = ["python", "platform/tune.py", *f"--trials {TRIALS} --trials-at-once {TRIALS} --epochs {EPOCHS}".split()]


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
    said = hosts["laptop"].run(*SEARCH, *mine, cwd=ROOT, check=False)
    workers = ", ".join(hosts[name].address for name in ("worker1", "worker2"))
    assert f"tune: /tmp/mine is not there on {workers}; put it on a file system" in said, said
    diary.say(f"data on the head alone is refused, with the machines that lack it ({time.monotonic() - start:.1f} s)")
    assert not list(cluster.runs.glob("train/x-*"))


def test_a_search_from_the_laptop_outlives_a_lost_machine_a_lost_laptop_and_ctrl_c(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    one = Terminal(hosts, *SEARCH, "--front")
    diary.say(f"$ {' '.join(SEARCH)} --front")
    begun = "every trial has trained two epochs"
    diary.wait(begun, lambda: min(cluster.all_epochs()) > 1, 240)
    assert "tune: cluster ldseg at 10.99.0.11 (cluster.yaml describes it, it is up)" in one.screen, one.screen
    assert cluster.trainers() == sorted(NODES)
    hosts.link("worker1", False)
    unplugged, before = time.monotonic(), cluster.all_epochs()
    diary.say(f"unplugged worker1; each machine trained a trial (epochs so far: {before})")

    hosts.link("laptop", False)
    diary.wait("the laptop, unplugged too, says that the cluster is away", lambda: "can't be reached" in one.screen, 60)
    hosts.link("laptop", True)
    diary.wait("the laptop, plugged in again, follows", lambda: "the cluster is back" in one.screen, 60)
    one.interrupt()
    diary.wait("Ctrl-C asks", lambda: "Stop the job on the cluster" in one.screen, 20)
    one.type("l\n")
    assert one.process.wait(30) == 0 and "it goes on" in one.screen
    diary.wait("the cluster knows that worker1 is away", lambda: len(cluster.alive()) == 2, 150, pause=3)
    grown = [now - then for now, then in zip(cluster.all_epochs(), before, strict=True)]
    lost = grown.index(min(grown))
    diary.say(f"trial {lost} was worker1's; epochs trained since: {grown}")
    assert sorted(grown)[0] <= 1 and sorted(grown)[1] > 1, "the other machines went on"

    time.sleep(max(0.0, 75 - (time.monotonic() - unplugged)))
    hosts.link("worker1", True)
    diary.say("plugged worker1 in again")
    two = Terminal(hosts, "python", "platform/tune.py", "--attach")
    diary.wait("worker1 is back in the cluster", lambda: len(cluster.alive()) == 3, 240, pause=3)
    diary.wait("the search has ended", lambda: two.process.poll() is not None, 400)
    diary.say("the end of what the laptop showed:\n" + two.screen[-2500:])
    assert two.process.returncode == 0
    assert "trial 1/3  starts" in two.screen, "who attaches is shown everything from the beginning"
    for trial in range(TRIALS):
        trained = cluster.epochs(trial)
        again = len(trained) - len(set(trained))
        diary.say(f"trial {trial}: {len(set(trained))} epochs, {again} trained again")
        assert sorted(set(trained)) == list(range(1, EPOCHS + 1))
        assert again <= (1 if trial == lost else 0)
    assert (cluster.runs / "studies" / "phantom2d" / "report.html").exists()


def test_the_registry_on_the_cluster_is_reached_from_the_laptop(cluster):
    said = cluster.hosts["laptop"].run(
        "python", "platform/promote.py", "ldseg", "--dry-run", "--min-dice", "0", "--min-diversity", "0", cwd=ROOT,
        check=False,
    )  # fmt: skip
    cluster.diary.say("promote --dry-run from the laptop:\n" + said)
    assert "cases" in said and "promote: cluster ldseg" in said


def test_ray_down_stops_the_head_and_the_workers_follow(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    hosts["laptop"].run("ray", "down", "-y", "cluster.yaml", cwd=ROOT)
    diary.say("`ray down -y cluster.yaml` ended well")
    assert cluster.raylets("head") == 0
    diary.wait("no machine runs Ray", lambda: not any(cluster.raylets(name) for name in NODES), 180)
    said = hosts["laptop"].run("python", "platform/tune.py", "--trials", "0", cwd=ROOT, check=False)
    assert "must be at least 1" in said
    said = hosts["laptop"].run("python", "platform/tune.py", "--address", "cluster.yaml", cwd=ROOT, check=False)
    assert "start the cluster with `ray up -y cluster.yaml`" in said, said
