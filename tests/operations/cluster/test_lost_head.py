"""The one machine that may not be lost is lost: what is there afterwards."""

from cluster.hosts import ROOT
from cluster.rig import Terminal

EPOCHS = 10
SEARCH = ["python", "platform/tune.py", "--name", "again", "--trials", "1", "--epochs", str(EPOCHS)]


def test_a_lost_head_ends_the_job_and_the_same_command_resumes_the_search(cluster):
    hosts, diary = cluster.hosts, cluster.diary
    cluster.up()
    one = Terminal(hosts, *SEARCH)
    diary.wait("the trial has trained three epochs", lambda: len(cluster.epochs(0, "again")) > 2, 240)
    hosts["head"].run("pkill", "-9", "-f", "ray", check=False)
    before = len(cluster.epochs(0, "again"))
    diary.say(f"killed (-9) all of Ray on the head; epochs so far: {before}")
    diary.wait("the laptop says that the cluster is away", lambda: "can't be reached" in one.screen, 60)
    one.interrupt()
    diary.wait("Ctrl-C asks", lambda: "Stop the job on the cluster" in one.screen, 20)
    one.type("\n")
    assert one.process.wait(30) == 0
    cluster.up()
    two = Terminal(hosts, *SEARCH, "--resume")
    diary.wait("the search has ended", lambda: two.process.poll() is not None, 300)
    diary.say("the end of what the laptop showed:\n" + two.screen[-1500:])
    assert two.process.returncode == 0
    trained = cluster.epochs(0, "again")
    diary.say(f"{len(set(trained))} epochs, {len(trained) - len(set(trained))} trained again")
    assert sorted(set(trained)) == list(range(1, EPOCHS + 1)) and len(trained) <= EPOCHS + 1
    assert len(list((cluster.runs / "studies").glob("again.db"))) == 1


def test_the_registry_on_the_cluster_is_reached_from_the_laptop(cluster):
    said = cluster.hosts["laptop"].run(
        "python", "platform/promote.py", "ldseg", "--dry-run", "--min-dice", "0", cwd=ROOT,
        check=False,
    )  # fmt: skip
    cluster.diary.say("promote --dry-run from the laptop:\n" + said)
    assert "cases" in said and "promote: cluster ldseg" in said
