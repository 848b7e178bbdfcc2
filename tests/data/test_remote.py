"""Cohorts on object storage, by a server that speaks S3: copied once, brought up to date, never outside of the copy."""

import os
import subprocess
import sys

import boto3
import pytest
from buckets import write
from pyarrow import fs

from ldseg.config import Config
from ldseg.data import remote
from ldseg.data.cohort import read_cohort
from ldseg.data.content import content_digests
from ldseg.data.errors import CohortError
from ldseg.data.remote import absolute, fetch, is_url, local_path, location, unreadable_reason
from ldseg.orchestration.cluster.dispatch import for_cluster
from ldseg.orchestration.training.run import TrainRun
from ldseg.orchestration.training.worker import read_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cohort(buckets, phantoms):
    """The phantoms' address."""
    url = f"{buckets.new()}/studies/phantoms"
    storage, root = fs.FileSystem.from_uri(url)
    fs.copy_files(str(phantoms), root, fs.LocalFileSystem(), storage)
    return url


@pytest.fixture
def brought(monkeypatch):
    """The names of what is copied."""
    names, bring = [], remote.bring

    def counting(storage, name, path):
        names.append(path.name)
        bring(storage, name, path)

    monkeypatch.setattr(remote, "bring", counting)
    return names


def test_a_cohort_at_an_address_is_the_same_cohort(cohort, phantoms):
    there, own = read_cohort(cohort), read_cohort(phantoms)
    assert there.name == "phantoms" and there.structures == own.structures and there.label_values == own.label_values
    assert [(c.name, c.split) for c in there.cases] == [(c.name, c.split) for c in own.cases]
    assert [c.image.read_bytes() for c in there.cases] == [c.image.read_bytes() for c in own.cases], "not packed anew"
    config = {"data": {"spatial_dims": 2, "shape": [16, 16]}, "model": {"downsampling": [4, 4], "patch": [2, 2]}}
    run = TrainRun(name="x", home="/nowhere", data=cohort, config=config)
    data = read_data(run)
    keys = Config.from_dict(config).data
    assert content_digests(data.cases, keys) == content_digests(own.cases, keys)


def test_only_what_is_new_or_has_changed_is_copied_and_what_is_gone_goes(cohort, brought):
    folder = fetch(cohort)
    total = len(brought)
    assert total == sum(path.is_file() for path in folder.rglob("[!.]*")) > 20
    brought.clear()
    assert fetch(cohort) == folder and not brought
    storage, root = fs.FileSystem.from_uri(cohort)
    write(f"{cohort}/phantom.json", b"{}")
    write(f"{cohort}/more.txt", b"more")
    storage.delete_file(f"{root}/dataset.json")
    fetch(cohort)
    assert sorted(brought) == ["more.txt", "phantom.json"]
    assert (folder / "phantom.json").read_bytes() == b"{}" and not (folder / "dataset.json").exists()


def test_a_copy_that_was_broken_off_or_lost_a_file_is_made_whole(cohort, brought, monkeypatch):
    kept = remote.bring

    def breaking(storage, name, path):
        if path.name == "manifest.csv":
            raise OSError("the line is cut")
        kept(storage, name, path)

    monkeypatch.setattr(remote, "bring", breaking)
    with pytest.raises(CohortError, match="can't be read .the line is cut."):
        fetch(cohort)
    monkeypatch.setattr(remote, "bring", kept)
    folder = fetch(cohort)
    assert "manifest.csv" in brought and not list(folder.rglob("*.part"))
    brought.clear()
    next(folder.glob("imagesTr/*")).unlink()
    fetch(cohort)
    assert len(brought) == 1


def test_several_processes_copy_at_once_and_read_the_same(cohort, cache):
    code = f"from ldseg.data.cohort import read_cohort; print(len(read_cohort({cohort!r}).cases))"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == ["20", "20"]
    assert len(list(cache.glob("data/*"))) == 1


def test_a_manifest_brings_its_folder_and_an_image_comes_alone(cohort, brought):
    assert len(read_cohort(f"{cohort}/manifest.csv").cases) == 20
    brought.clear()
    image = fetch(f"{cohort}/imagesTr/phantom2d_0003.nii.gz")
    assert brought == [image.name] == ["phantom2d_0003.nii.gz"]


@pytest.mark.parametrize(
    ("end", "words"),
    [("/nothing", "nothing lies at s3://.*look for a typing error"), ("-no-bucket", "nothing lies at|can't be read")],
)
def test_what_is_not_there_is_told(cohort, end, words):
    with pytest.raises(CohortError, match=words):
        read_cohort(cohort.rpartition("/")[0] + end)
    assert unreadable_reason(f"{cohort}/nothing") == "nothing lies there" and unreadable_reason(cohort) == ""


def test_addresses_of_nothing_known_and_names_that_lead_out_are_refused(cohort, cache):
    with pytest.raises(CohortError, match="what://x/y is no address of files"):
        read_cohort("what://x/y")
    bucket = cohort.split("/")[2]
    boto3.client("s3").put_object(Bucket=bucket, Key="studies/phantoms/a/../../../../out.txt", Body=b"")
    with pytest.raises(CohortError, match="would lie outside of its copy"):
        fetch(cohort)
    assert not list(cache.rglob("out.txt"))


def test_what_is_an_address():
    assert is_url("s3://a/b") and not is_url("/a/b") and not is_url("C:/a")
    assert location("s3://a/b/") == absolute("s3://a/b") == "s3://a/b"
    assert absolute(location("b")) == os.path.abspath("b") and str(local_path("/a/b")) == "/a/b"
    given = ["--data", "s3://a/b", "--data=gs://c"]
    assert for_cluster(given, []) == given
