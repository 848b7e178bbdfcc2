"""The authors' model to the digit, where the reference vectors of their code are at hand."""

import copy

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldseg import ROOT
from ldseg.bundle import load_bundle, save_bundle
from ldseg.config import Config, ConfigError, DiffusionConfig, SamplerConfig
from ldseg.data.cohort import read_cohort
from ldseg.data.grid import label_to_grid, prepare
from ldseg.data.volume import read_label, read_volume
from ldseg.diffusion import make_alphas_cumprod
from ldseg.keras_import import _slots, import_authors, load_network, read_layers
from ldseg.model import LDSeg
from ldseg.networks import authors
from ldseg.samplers import authors_schedule
from ldseg.training.losses import TrainingLoss

SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "reference"
NAMES = {
    "label_encoder": "labelEncoder", "label_decoder": "labelDecoder", "image_encoder": "imageEncoder",
    "denoiser": "denoiser",
}  # fmt: skip
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the authors' vectors are not at hand")
DIMS = pytest.mark.parametrize("dims", [2, 3])
RELATIVE = 5e-5  # of the output's largest value: the vectors are another library's float32, its group moments are off


@pytest.fixture(scope="module")
def tiny():
    found = {}
    for dims in (2, 3):
        files = {key: REFERENCE / "tiny" / f"tiny{dims}D_{name}.hdf5" for key, name in NAMES.items()}
        model, _ = import_authors(files, ["gland"] if dims == 2 else ["femur", "tibia"])
        with np.load(REFERENCE / "tiny" / f"tiny{dims}D.npz") as arrays:
            found[dims] = model, dict(arrays)
    return found


def _first(array):
    """Channels last, as Keras has them, to channels first."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array, dtype=np.float32), -1, 1)))


def _difference(output, reference):
    """Largest difference over the reference's largest value."""
    wanted = _first(reference)
    assert output.shape == wanted.shape
    return float((output - wanted).abs().max() / wanted.abs().max())


@needs_reference
@DIMS
@torch.no_grad()
def test_every_network_gives_what_keras_gives(tiny, dims):
    model, arrays = tiny[dims]
    one_hot = F.one_hot(torch.from_numpy(arrays["label"]).long(), model.config.data.num_classes).movedim(-1, 1).float()
    assert _difference(model.encode_label(one_hot), arrays["labelEncoder_out"]) < RELATIVE
    assert _difference(model.encode_image(_first(arrays["image_u8"]) / 255), arrays["imageEncoder_out"]) < RELATIVE
    decoded = model.decode(_first(arrays["decoder_in"])).softmax(1)
    if dims == 2:
        assert _difference(decoded, arrays["labelDecoder_out"]) < RELATIVE
    else:
        assert _difference(decoded[:, :, 24:40, 20:36, 40:56], arrays["labelDecoder_out_crop"]) < RELATIVE
        assert (decoded.argmax(1).numpy() == arrays["labelDecoder_argmax"]).mean() > 0.99999
    z, t, condition = _first(arrays["denoiser_z"]), torch.from_numpy(arrays["denoiser_t"]), arrays["denoiser_cond"]
    assert _difference(model.denoiser(z, t, _first(condition)), arrays["denoiser_out"]) < RELATIVE


def _noise(arrays, key):
    yield _first(arrays[f"{key}_zT_raw"])
    for epsilon in arrays.get(f"{key}_eps", []):
        yield _first(epsilon)


@needs_reference
@DIMS
@pytest.mark.parametrize("key", ["ddim_b1", "ddim_b2", "ddpm_b1"])
@torch.no_grad()
def test_a_whole_trajectory_and_its_labels_are_those_of_the_authors(tiny, dims, key):
    model, arrays = tiny[dims]
    images = _first(arrays["image_u8"])[: len(arrays[f"{key}_z_i"])] / 255
    embedding = model.encode_image(images)
    assert _difference(embedding, arrays[f"{key}_z_i"]) < RELATIVE
    sampler = SamplerConfig(method=key[:4], num_sample_steps=15, standardise="batch", schedule="authors")
    latents = model.sample_latents(embedding, _noise(arrays, key), sampler)
    assert _difference(latents, arrays[f"{key}_z_0"]) < 1e-4
    labels = model.decode(latents).argmax(1).numpy()
    assert (labels == arrays[f"{key}_yhat"]).mean() > 0.9999
    if key == "ddim_b2":  # only here does a case see its neighbour
        alone = SamplerConfig(num_sample_steps=15, standardise="sample", schedule="authors")
        assert _difference(model.sample_latents(embedding, _noise(arrays, key), alone), arrays[f"{key}_z_0"]) > 1e-3


@needs_reference
@DIMS
@torch.no_grad()
def test_each_trait_of_keras_is_needed(tiny, dims):
    model, arrays = tiny[dims]

    def broken(change):
        other = copy.deepcopy(model)
        for module in other.modules():
            change(module)
        one_hot = F.one_hot(torch.from_numpy(arrays["label"]).long(), other.config.data.num_classes).movedim(-1, 1)
        z, t = _first(arrays["denoiser_z"]), torch.from_numpy(arrays["denoiser_t"])
        return max(
            _difference(other.encode_label(one_hot.float()), arrays["labelEncoder_out"]),
            _difference(other.encode_image(_first(arrays["image_u8"]) / 255), arrays["imageEncoder_out"]),
            _difference(other.denoiser(z, t, _first(arrays["denoiser_cond"])), arrays["denoiser_out"]),
        )

    def epsilon(module):
        if hasattr(module, "eps"):
            module.eps = 1e-5

    def residual(module):
        if isinstance(module, authors.Attention):
            module.raw_residual = not module.raw_residual

    def padding(module):
        if isinstance(module, torch.nn.ConstantPad2d | torch.nn.ConstantPad3d):
            module.padding = module.padding[::-1]

    for change in (epsilon, residual, padding):
        assert broken(change) > 1e-3, change.__name__


@needs_reference
@pytest.mark.parametrize("steps", [5, 10, 15, 50])
def test_the_samplers_times_and_shares_of_signal(steps):
    with np.load(REFERENCE / "schedules.npz") as stored:
        times, alphas_cumprod = authors_schedule(1000, steps)
        np.testing.assert_allclose(times, stored[f"sampler{steps}_times"], rtol=1e-12)
        np.testing.assert_allclose(alphas_cumprod, stored[f"sampler{steps}_alphas_cumprod"], rtol=1e-9, atol=1e-15)


@needs_reference
def test_our_schedules_are_theirs_and_the_cosine_is_one_step_ahead():
    with np.load(REFERENCE / "schedules.npz") as stored:
        for kind in ("linear", "quadratic"):
            own = make_alphas_cumprod(DiffusionConfig(schedule=kind))
            np.testing.assert_allclose(own, stored[f"{kind}_alphas_cumprod"], rtol=1e-5, atol=1e-9)
        own = make_alphas_cumprod(DiffusionConfig())
        np.testing.assert_allclose(own[:-1], stored["cosine_alphas_cumprod"][1:], rtol=1e-4, atol=1e-9)


@needs_reference
@DIMS
def test_the_published_weights_load_and_without_a_denoiser_they_are_a_control(tmp_path, dims):
    end = "3D" if dims == 3 else ""
    files = {k: REFERENCE / "savedModels" / f"{n}{end}.hdf5" for k, n in list(NAMES.items())[:3]}
    model, origin = import_authors(files, ["gland"] if dims == 2 else ["femur", "tibia"])
    counts = [sum(p.numel() for p in getattr(model, k).parameters()) for k in files]
    assert counts == ([185617, 270566, 294061] if dims == 2 else [787649, 787273, 138851])  # trainable ones
    assert sum(p.numel() for p in model.denoiser.parameters()) == (1013873 if dims == 2 else 2209937)
    assert model.config.loss.deterministic and set(origin["files"]) == set(files)
    save_bundle(tmp_path / "b", model, model.config, origin)
    loaded = load_bundle(tmp_path / "b").model
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@needs_reference
@pytest.mark.skipif(not (SHARED / "data" / "glas").is_dir(), reason="the GlaS images are not at hand")
@torch.no_grad()
def test_their_autoencoder_returns_real_gland_labels_as_it_does_in_keras():
    files = {k: REFERENCE / "savedModels" / f"{n}.hdf5" for k, n in list(NAMES.items())[:3]}
    model, _ = import_authors(files, ["gland"])
    data, scores, direct = model.config.data, [], []
    for case in read_cohort(SHARED / "data" / "glas", foreground_only=True).cases[:2]:
        volume = read_volume(case.image, case=case.name, spatial_dims=2, in_channels=3)
        grid = prepare(volume, data, model.config.model.multiple)
        label = label_to_grid(read_label(case.labels[0], volume, data), grid)
        assert grid.image.shape == (3, 512, 512) and 0 <= grid.image.min() < 0.05 and 0.95 < grid.image.max() <= 1
        latent = model.encode_label(F.one_hot(label, 2).movedim(-1, 0)[None].float())
        embedded = model.direct_latents(model.encode_image(grid.image[None]))
        for z, found in ((latent, scores), (embedded, direct)):
            mask = model.decode(z)[0].argmax(0)
            found.append(2 * float((mask * label).sum()) / float(mask.sum() + label.sum()))
    assert scores == pytest.approx([0.985, 0.982], abs=0.003)  # Keras, its own nearest-neighbour resizing: 0.985, 0.982
    assert direct == pytest.approx([0.857, 0.874], abs=0.02)


@needs_reference
@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "knee").is_dir(), reason="the knee volumes are not at hand")
@torch.no_grad()
def test_their_knee_networks_on_a_real_volume_score_as_they_do_in_keras():
    files = {k: REFERENCE / "savedModels" / f"{n}3D.hdf5" for k, n in list(NAMES.items())[:3]}
    model, _ = import_authors(files, ["femur", "tibia"])
    case, data = read_cohort(SHARED / "data" / "knee").cases[0], model.config.data
    volume = read_volume(case.image, case=case.name, spatial_dims=3)
    grid = prepare(volume, data, model.config.model.multiple)
    label = label_to_grid(read_label(case.labels[0], volume, data), grid)
    latent = model.encode_label(F.one_hot(label, 3).movedim(-1, 0)[None].float())
    embedded = model.direct_latents(model.encode_image(grid.image[None]))
    for z, wanted in ((latent, [0.962, 0.953]), (embedded, [0.955, 0.959])):
        mask = model.decode(z)[0].argmax(0)
        found = [
            2 * float(((mask == k) & (label == k)).sum() / ((mask == k).sum() + (label == k).sum())) for k in (1, 2)
        ]
        assert found == pytest.approx(wanted, abs=0.01)


def _random_files(folder, config, seed=0):
    """Keras-like files of random weights for the networks of a configuration."""
    torch.manual_seed(seed)
    model, generator = LDSeg(config), np.random.default_rng(seed)
    files = {}
    for key in NAMES:
        files[key] = folder / f"{key}.hdf5"
        with h5py.File(files[key], "w") as file:
            names = []
            for number, (_, tensor) in enumerate(_slots(getattr(model, key))):
                array = tensor.detach().numpy()
                array = np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array
                name = f"layer_{number}"
                group = file.create_group(name)
                values = generator.normal(size=array.shape).astype(np.float32)
                group.create_dataset("w:0", data=np.abs(values) if array.ndim == 1 else values)
                group.attrs["weight_names"] = np.array([b"w:0"])
                names.append(name.encode())
            file.attrs["layer_names"] = np.array([b"no_weights", *names])
            file.create_group("no_weights").attrs["weight_names"] = np.array([], dtype="S1")
    return model, files


FAITHFUL = {
    "data": {
        "spatial_dims": 2, "shape": [64, 64], "fit": "stretch", "label_values": [0, 1], "structures": ["gland"],
        "in_channels": 3, "intensity": "minmax",
    },
    "model": {
        "family": "authors", "downsampling": [16, 16], "patch": [1, 1], "latent_channels": 1, "embedding_channels": 1,
        "autoencoder_widths": [4, 8, 16, 16, 8], "image_widths": [8, 16, 32, 32, 16], "denoiser_widths": [8, 12, 16],
    },
    "diffusion": {"prediction_type": "epsilon", "input_scale": "none"},
    "loss": {"decoded_estimate": "difference", "shared_noise": True, "reconstruction": 0.0, "detach_target": False},
    "sampler": {"num_sample_steps": 5, "standardise": "batch", "schedule": "authors"},
}  # fmt: skip


@DIMS
@torch.no_grad()
def test_in_evaluation_a_block_gives_in_few_passes_what_its_layers_give_one_by_one(dims):
    torch.manual_seed(0)
    block = authors.AutoencoderBlock(dims, 3, 5).double().eval()
    for name, tensor in block.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, *(5, 4, 7)[:dims], dtype=torch.float64)
    h = block.norm2(block.conv2(F.silu(block.norm1(block.conv1(x)))))
    wanted = F.silu(block.shortcut_norm(block.shortcut(x)) + h)
    torch.testing.assert_close(block(x), wanted, rtol=1e-10, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        assert (block.float()(x.float()).double() - wanted).abs().max() < 0.02 * wanted.abs().max()


@torch.no_grad()
def test_a_transposed_convolution_is_nearest_neighbours_and_a_convolution():
    torch.manual_seed(0)
    up = authors.Upsample(3, 3, 5).double()
    x = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64)  # borders are most of it
    torch.testing.assert_close(up.eval()(x), up.train()(x), rtol=1e-10, atol=1e-12)


def test_evaluation_leaves_the_gradients_as_they_are():
    torch.manual_seed(0)
    decoder = authors.LabelDecoder(3, (2,), 2).double().eval()
    x = torch.randn(1, 1, 2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decoder, x, rtol=1e-4)
    decoder(x).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_weights_are_taken_by_position_and_land_where_they_belong(tmp_path):
    model, files = _random_files(tmp_path, Config.from_dict(FAITHFUL))
    load_network(model.denoiser, read_layers(files["denoiser"]), files["denoiser"])
    with h5py.File(files["denoiser"]) as file:
        dense, kernel = file["layer_0/w:0"][()], file["layer_2/w:0"][()]
    assert np.array_equal(model.denoiser.time1.weight.detach().numpy(), dense.T)
    weight = model.denoiser.stem.weight.detach().numpy()
    assert weight.shape == (8, 2, 3, 3) and np.array_equal(weight[5, 1, 0, 2], kernel[0, 2, 1, 5])


def test_the_faithful_mode_trains_with_the_one_loss():
    config = Config.from_dict(FAITHFUL)
    model, generator = LDSeg(config), torch.Generator().manual_seed(0)
    images, labels = (
        torch.rand(2, 3, 64, 64, generator=generator),
        torch.randint(0, 2, (2, 64, 64), generator=generator),
    )
    noise = [torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2)]
    TrainingLoss(model)(images, labels, torch.tensor([10, 900]), *noise)["loss"].backward()
    for name in NAMES:
        assert any(p.grad is not None and p.grad.any() for p in getattr(model, name).parameters()), name


def test_wrong_files_are_told_by_name(tmp_path):
    _, files = _random_files(tmp_path, Config.from_dict(FAITHFUL))
    model = LDSeg(Config.from_dict(FAITHFUL))
    with pytest.raises(
        ConfigError, match=r"denoiser\.hdf5: layer_0 has the shape .* is it the file of another network"
    ):
        load_network(model.image_encoder, read_layers(files["denoiser"]), files["denoiser"])
    (tmp_path / "cut.hdf5").write_bytes(files["denoiser"].read_bytes()[:5000])
    (tmp_path / "text.hdf5").write_text("no HDF5")
    for name in ("cut", "text", "missing"):
        with pytest.raises(ConfigError, match=rf"{name}\.hdf5 is no Keras 2 weight file"):
            read_layers(tmp_path / f"{name}.hdf5")
    with h5py.File(files["denoiser"], "a") as file:
        file["layer_3/w:0"][...] = np.nan
    with pytest.raises(ConfigError, match="the weights of layer_3 are not all finite"):
        read_layers(files["denoiser"])
