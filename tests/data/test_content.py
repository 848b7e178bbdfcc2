import gzip

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
from tiny import random_bundle, tiny_config

from ldseg.data.cohort import Case, read_cohort
from ldseg.data.content import content_digests, labels_digest
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.evaluation.evaluate import evaluate
from ldseg.posterior.draws import Draws


def test_the_same_voxels_are_the_same_case_under_another_name_and_compression(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes(), 1))
    voxels[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "c.nii")
    (tmp_path / "d.nii").write_bytes(b"broken")
    cases = [Case(name=name, image=tmp_path / name) for name in ("a.nii", "b.nii.gz", "c.nii", "d.nii")]
    found = content_digests(cases, tiny_config(3).data)
    assert list(found) == ["a.nii", "b.nii.gz", "c.nii"]
    assert found["a.nii"] == found["b.nii.gz"] != found["c.nii"]


def test_the_digest_of_labels_knows_their_voxels_shape_number_and_order():
    one, other = np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8)
    digests = [labels_digest(r) for r in ([one], [other], [one, other], [other, one], [one.reshape(2, 8)], [])]
    assert len(set(digests)) == 6 and digests[-1] == ""


def test_the_table_of_an_evaluation_names_each_case_by_the_content_of_its_image_and_labels(tmp_path):
    write_phantoms(tmp_path / "data", PhantomConfig(dims=2, cases=4, raters=2, shape=(16, 16)))
    bundle = random_bundle(tmp_path / "bundle", tiny_config(2, ("organ", "nodule", "lobe")))
    cases = read_cohort(tmp_path / "data").cases[:2]
    result = evaluate(bundle, cases, Draws(2))
    assert {row["case"]: row["content"] for row in result.rows} == content_digests(cases, bundle.config.data)
    assert len({row["labels"] for row in result.rows}) == 2
    result.write(tmp_path / "tables")
    stored = pq.read_table(tmp_path / "tables" / "cases.parquet").to_pylist()
    assert [row["labels"] for row in stored] == [row["labels"] for row in result.rows]
    assert "content" not in result.summary["metrics"]
