"""Hippocampus MR crops of 1 mm (Medical Segmentation Decathlon, task 4): about 35x51x36 voxels, two structures."""

BASE = {
    "data": {
        "spatial_dims": 3,
        "shape": [40, 56, 40],
        "spacing_mm": [1.0, 1.0, 1.0],
        "fit": "pad",
        "flip_axes": [0],
        "max_rotation": 25.0,
        "max_scale": 1.25,
    },
    "model": {
        "downsampling": [4, 4, 4],
        "patch": [2, 2, 2],
        "latent_channels": 4,
        "decoder_skips": 24,
        "norm_group": 1,
        "image_patch": [1, 1, 1],
        "image_widths": [16, 32, 64, 96],
        "image_climb": True,
    },
    "diffusion": {"noise_shift": 3.0},
    "loss": {"noisiest_share": 0.2},
    "optim": {"epochs": 120, "batch_size": 2, "validate_every": 20},
    "sampler": {
        "method": "dpm++2m",
        "num_sample_steps": 4,
        "schedule": "quadratic",
        "noise_scale": 1.5,
        "image_share": 0.5,
    },
}

SPACE = {
    "latent": (
        "options",
        {
            "10x14x10": {
                "model.downsampling": [4, 4, 4],
                "model.autoencoder_widths": [24, 48],
            },
            "5x7x5": {
                "model.downsampling": [8, 8, 8],
                "model.autoencoder_widths": [24, 48, 64],
                "model.denoiser_widths": [64],
            },
        },
    ),
    "image": (
        "options",
        {
            "patches": {
                "model.image_patch": [],
                "model.image_widths": [24, 64, 96],
                "model.image_climb": False,
                "model.decoder_skips": 0,
            },
            "voxels": {
                "model.image_patch": [1, 1, 1],
                "model.image_widths": [16, 32, 64, 96],
                "model.image_climb": True,
                "model.decoder_skips": 24,
            },
            "its own logits": {
                "model.image_patch": [],
                "model.image_widths": [24, 48, 96],
                "model.image_climb": False,
                "model.decoder_skips": 0,
                "model.image_logits": True,
                "loss.image_alone": 0.5,
            },
        },
    ),
    "model.latent_channels": ("choice", [1, 4, 8]),
    "model.norm_group": ("choice", [1, 8]),
    "diffusion.noise_shift": ("choice", [1.0, 2.0, 3.0, 5.0]),
    "loss.noisiest_share": ("choice", [0.0, 0.2, 0.3]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.5, 4.0),
    "optim.learning_rate": ("loguniform", 3e-4, 2e-3),
}

START = [
    {
        "latent": "10x14x10",
        "image": "voxels",
        "model.latent_channels": 4,
        "model.norm_group": 1,
        "diffusion.noise_shift": 3.0,
        "loss.noisiest_share": 0.2,
        "loss.denoising": 1.0,
        "loss.dice": 2.0,
        "optim.learning_rate": 1e-3,
    },
    {  # the authors' settings: one channel, eight times smaller, their schedule and weights
        "latent": "5x7x5",
        "image": "patches",
        "model.latent_channels": 1,
        "model.norm_group": 8,
        "diffusion.noise_shift": 1.0,
        "loss.noisiest_share": 0.0,
        "loss.denoising": 1.0,
        "loss.dice": 2.0,
        "optim.learning_rate": 1e-3,
    },
]

METRIC = ("val_dice", "max")
