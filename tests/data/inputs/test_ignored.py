"""nnU-Net's "ignore": no structure, and in no loss, score, calibration or latent; regions are refused."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scored import AFFINE, write_case

from ldseg.calibration.conformal import VolumeRow, fit_intervals
from ldseg.config import IGNORED, DataConfig
from ldseg.data.cohort import Case, CohortError, for_model, read_cohort
from ldseg.data.dataset import TrainingSet
from ldseg.data.errors import CaseError
from ldseg.data.reading import read_case
from ldseg.evaluation.calibrate import calibrate
from ldseg.evaluation.evaluate import evaluate
from ldseg.evaluation.label_map import label_classes
from ldseg.metrics.probability import nll
from ldseg.model import LDSeg
from ldseg.posterior.accumulator import sample_labels
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior, sample_probabilities
from ldseg.training.fit import TrainingState, fit, validate
from ldseg.training.losses import TrainingLoss, draw_training
from tests.helpers.tiny import random_bundle, tiny_config

LABELS = {"background": 0, "organ": 1, "nodule": 2, "ignore": 3}
OPEN = (slice(5, 9), slice(0, 15), slice(3, 11))  # cuts both boxes


def cohort(root: Path, cases: int = 6, labels: dict[str, object] | None = None) -> Path:
    """An nnU-Net folder whose labels leave a block open."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for index in range(cases):
        case = write_case(root / "raw", f"c{index}", 3, seed=index)
        case.image.rename(root / "imagesTr" / f"c{index}_0000.nii.gz")
        values = np.asarray(nib.load(case.labels[0]).dataobj).copy()
        values[OPEN] = 3
        nib.save(nib.Nifti1Image(values, AFFINE), root / "labelsTr" / f"c{index}.nii.gz")
    content = {"channel_names": {"0": "MR"}, "labels": labels or LABELS, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return cohort(tmp_path_factory.mktemp("ignored") / "Dataset001")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return random_bundle(tmp_path_factory.mktemp("model") / "model", tiny_config())


def known(label: np.ndarray) -> np.ndarray:
    return label != IGNORED


def test_ignore_is_no_structure_and_its_voxels_are_left_open(data, bundle):
    found = read_cohort(data)
    assert (found.structures, found.label_values) == (("organ", "nodule"), (0, 1, 2))
    matched, said = for_model(found, bundle.config.data)
    label = read_case(matched.cases[0], bundle.config.data)[1][0]
    assert not said and set(np.unique(label)) == {0, 1, 2, IGNORED}
    assert (label[OPEN] == IGNORED).all() and (label == IGNORED).sum() == 4 * 15 * 8
    instances = DataConfig(shape=(16, 16, 16), foreground_only=True)
    case = read_cohort(data, foreground_only=True).cases[0]
    assert np.array_equal(read_case(case, instances)[1][0], np.where(known(label), label > 0, IGNORED))


def test_a_label_that_leaves_everything_open_is_refused(data, bundle, tmp_path):
    case = read_cohort(data).cases[0]
    nib.save(nib.Nifti1Image(np.full((13, 15, 11), 3, np.uint8), AFFINE), tmp_path / "l.nii.gz")
    with pytest.raises(CaseError, match="leaves every voxel open"):
        read_case(Case(name="c", image=case.image, labels=(tmp_path / "l.nii.gz",), ignore=3), bundle.config.data)


def test_the_loss_of_a_half_left_open_is_that_of_the_other_half():
    model = LDSeg(tiny_config())
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, 8, 6, 4), generator=generator)
    labels = torch.randint(3, (2, 8, 6, 4), generator=generator)
    one_hot = F.one_hot(labels, 3).movedim(-1, 1).float()
    wanted = TrainingLoss(model)._segmentation(logits[:, :, :4], one_hot[:, :, :4], labels[:, :4])
    half = labels.clone()
    half[:, 4:] = IGNORED
    found = TrainingLoss(model, has_ignored=True)._segmentation(logits.requires_grad_(), one_hot, half)
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    (found[0] + found[1]).sum().backward()
    assert (logits.grad[:, :, 4:] == 0).all() and (logits.grad[:, :, :4] != 0).any()


def test_the_label_encoder_sees_background_there():
    config = tiny_config()
    torch.manual_seed(0)
    model = LDSeg(config).eval()
    images, labels = torch.randn((2, 1, 16, 16, 16)), torch.randint(3, (2, 16, 16, 16))
    drawn = draw_training(model, images, torch.Generator().manual_seed(0))
    left_open, background = labels.clone(), labels.clone()
    left_open[:, 3:9], background[:, 3:9] = IGNORED, 0
    found = TrainingLoss(model, has_ignored=True)(images, left_open, *drawn)
    wanted = TrainingLoss(model)(images, background, *drawn)
    for name in ("denoising", "latent_std"):
        assert float(found[name]) == float(wanted[name]), name
    for name in ("cross_entropy", "dice_loss", "reconstruction", "image"):
        assert float(found[name]) != float(wanted[name]), name
    labelled = TrainingLoss(model, has_ignored=True)(images, labels, *drawn)
    for name, value in TrainingLoss(model)(images, labels, *drawn).items():
        torch.testing.assert_close(labelled[name], value, rtol=1e-5, atol=1e-6)  # the same where nothing is open


def test_a_model_is_trained_and_validated_without_them(data):
    found = read_cohort(data)
    config = tiny_config().with_overrides({"optim.epochs": 1, "optim.batch_size": 2})
    sets = [
        TrainingSet(found.split(s), config.data, config.model.multiple, training=s == "train")
        for s in ("train", "validation")
    ]
    assert all(one.has_ignored for one in sets)
    state = TrainingState.create(config)
    (result,) = fit(state, *sets)
    assert np.isfinite(result.metrics["loss"]) and 0 <= result.metrics["val_dice"] <= 1
    item = sets[1][0]
    assert (item["label"] == IGNORED).any()
    scores, mean = validate(state.ema, sets[1]), drawn_mean(state.ema, item)
    there = item["label"] != IGNORED
    likelihood = mean.gather(0, (item["label"] * there)[None])[0].clamp(min=1e-6)
    assert scores["val_nll"] == pytest.approx(float(-likelihood[there].log().mean()), rel=1e-5)
    for k, name in ((1, "organ"), (2, "nodule")):
        a, b = (mean.argmax(0) == k) & there, item["label"] == k
        assert scores[f"val_dice_{name}"] == pytest.approx(2 * int((a & b).sum()) / int(a.sum() + b.sum()), rel=1e-6)


def drawn_mean(model: LDSeg, item: dict) -> torch.Tensor:
    """The mean probability of the two samples that a validation draws of its first case."""
    noise = torch.Generator().manual_seed(0)
    starts = torch.randn((2, *model.latent_shape(tuple(item["label"].shape))), generator=noise)
    with torch.no_grad():
        embedding = model.encode_image(item["image"][None])
        return sample_probabilities(model, embedding, starts, noise, None).mean(0)


def test_an_evaluation_scores_the_judged_voxels_alone(data, bundle):
    matched, _ = for_model(read_cohort(data), bundle.config.data)
    case, draws = matched.cases[0], Draws(3)
    row = evaluate(bundle, [case], draws).rows[0]
    volume, (label,) = read_case(case, bundle.config.data)
    posterior = Posterior(bundle)
    summary = posterior.summarise(posterior.draw(volume, draws))
    there = known(label)
    predicted, ml = label_classes(summary, bundle.config.data), abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    for k, name in ((1, "organ"), (2, "nodule")):
        a, b = predicted[there] == k, label[there] == k
        assert row[f"dice_{name}"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), rel=1e-6)
        assert row[f"{name}_volume_ml_reference"] == pytest.approx((label == k).sum() * ml, rel=1e-6)
        assert row[f"{name}_volume_ml_p50"] == pytest.approx(np.median(summary.volumes[name]), rel=1e-12), "the whole"
    assert row["nll"] == pytest.approx(nll(summary.mean_probability[:, there], label[there]), rel=1e-6)


def test_a_calibration_knows_the_judged_voxels_alone(data, bundle):
    matched, _ = for_model(read_cohort(data), bundle.config.data)
    draws, rows = Draws(3), []
    calibration, drawn = calibrate(bundle, matched.cases, draws, alpha=0.4, missed=0.4)
    posterior = Posterior(bundle)
    for case in matched.cases:
        volume, (label,) = read_case(case, bundle.config.data)
        answer = posterior.draw(volume, draws)
        geometry = answer.grid.geometry
        assert geometry.is_exact
        ours = geometry.pad(geometry.to_canonical(torch.from_numpy(label))).numpy()
        samples = sample_labels(answer.total)[:, ours != IGNORED]
        sizes = {n: (samples == k).sum(1) * answer.grid.voxel_size for k, n in ((1, "organ"), (2, "nodule"))}
        truth = {n: float((label == k).sum() * answer.grid.voxel_size) for k, n in ((1, "organ"), (2, "nodule"))}
        rows.append(VolumeRow(case.name, sizes, truth))
    steps = bundle.config.sampler.num_sample_steps
    assert calibration.intervals == fit_intervals(rows, steps=steps, unit="ml", alpha=0.4)
    judged = int(known(read_case(matched.cases[0], bundle.config.data)[1][0]).sum())
    assert calibration.temperature.voxels == judged * len(drawn)


def test_regions_are_refused_with_the_cure(tmp_path):
    labels = {"background": 0, "whole_tumour": [1, 2], "core": 2, "ignore": 3}
    with pytest.raises(CohortError, match="whole_tumour is a region of several values.*name each value by itself"):
        read_cohort(cohort(tmp_path / "regions", 3, labels))
