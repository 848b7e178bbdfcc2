"""Phantoms of `python -m ldseg.data.phantom --dims 3`: three structures, several raters, a known posterior."""

BASE = {
    "data": {
        "spatial_dims": 3,
        "shape": [32, 32, 24],
        "fit": "pad",
        "flip_axes": [0, 1, 2],
        "augment_intensity": False,
    },
    "model": {
        "downsampling": [4, 4, 4],
        "patch": [2, 2, 2],
        "latent_channels": 4,
        "image_logits": True,
        "image_widths": [24, 48, 96],
        "autoencoder_widths": [24, 48],
        "denoiser_widths": [32, 64],
        "denoiser_context": True,
        "norm_group": 1,
    },
    "diffusion": {"noise_shift": 4.0, "input_scale": "redundant"},
    "loss": {"timestep_weight": "alphas_cumprod", "decodings": "one", "estimate_dice": False},
    "optim": {"epochs": 40, "batch_size": 4, "validate_every": 4, "ema_decay": 0.99},
    "sampler": {"method": "dpm++2m", "num_sample_steps": 10, "schedule": "quadratic"},
}

SPACE = {
    "latent": (
        "options",
        {
            "8x8x6": {"model.downsampling": [4, 4, 4]},
            "4x4x3": {
                "model.downsampling": [8, 8, 8],
                "model.autoencoder_widths": [16, 32, 32],
                "model.image_widths": [16, 32, 64],
                "model.denoiser_widths": [32],
            },
        },
    ),
    "model.latent_channels": ("choice", [2, 4, 8]),
    "diffusion.noise_shift": ("choice", [2.0, 4.0]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.5, 4.0),
    "optim.learning_rate": ("loguniform", 5e-4, 2e-3),
}

METRIC = ("val_nll", "min")
