"""What a validation says of the samples, against the metrics applied by hand."""

import numpy as np
import pytest
import torch
from tiny import tiny_config

from ldseg.data.cohort import read_cohort
from ldseg.data.dataset import TrainingSet
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.metrics.energy import set_distances
from ldseg.posterior.sampling import sample_probabilities
from ldseg.training.fit import TrainingState, validate


@pytest.mark.parametrize("dims", [2, 3])
def test_the_energy_score_is_that_of_the_samples_against_all_raters(tmp_path, dims):
    write_phantoms(tmp_path / "p", PhantomConfig(dims=dims, cases=3, raters=2, shape=(16,) * dims))
    cohort = read_cohort(tmp_path / "p")
    state = TrainingState.create(tiny_config(dims, cohort.structures))
    model, config = state.ema, state.config
    for parameter in model.label_decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # samples that are not all empty
    cases = TrainingSet(cohort.cases[:2], config.data, config.model.multiple, tmp_path / "cache", training=False)
    expected = []
    for index in range(2):
        item, noise = cases[index], torch.Generator().manual_seed(index)
        starts = torch.randn((3, *model.latent_shape(tuple(item["label"].shape))), generator=noise)
        with torch.no_grad():
            embedding = model.encode_image(item["image"][None])
            drawn = sample_probabilities(model, embedding, starts, noise, 2).argmax(1)
        expected.append(set_distances(drawn.numpy(), item["labels"].numpy(), config.data.num_classes))
    found = validate(model, cases, samples=3, num_steps=2)["val_energy_score"]
    assert found == pytest.approx(np.mean([one.energy_score for one in expected]), rel=1e-12)
    assert all(one.readers == 2 and one.within > 0 for one in expected)
    alone = validate(model, cases, samples=1, num_steps=2)["val_energy_score"]
    assert 0 < alone <= 1, "one sample is one answer: its distance"
