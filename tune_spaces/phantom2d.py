"""Phantoms of `python -m ldseg.data.phantom --dims 2`: three structures, several raters, a known posterior."""

BASE = {
    "data": {"spatial_dims": 2, "shape": [64, 64], "fit": "pad", "flip_axes": [0, 1], "augment_intensity": False},
    "model": {
        "downsampling": [4, 4],
        "patch": [2, 2],
        "latent_channels": 4,
        "image_logits": True,
        "image_widths": [24, 48, 96],
        "denoiser_context": True,
    },
    "diffusion": {"noise_shift": 4.0, "input_scale": "redundant"},
    "loss": {
        "timestep_weight": "alphas_cumprod",
        "cross_entropy": 0.5,
        "dice": 0.5,
        "decodings": "one",
        "estimate_dice": False,
    },
    "optim": {"epochs": 90, "batch_size": 4, "validate_every": 10, "validation_samples": 4, "ema_decay": 0.995},
    "sampler": {"method": "dpm++2m", "num_sample_steps": 10, "schedule": "quadratic"},
}

SPACE = {
    "latent": (
        "options",
        {
            "16x16": {"model.downsampling": [4, 4]},
            "8x8": {
                "model.downsampling": [8, 8],
                "model.autoencoder_widths": [24, 48, 64],
                "model.image_widths": [24, 48, 64],
                "model.denoiser_widths": [64],
            },
        },
    ),
    "model.latent_channels": ("choice", [2, 4, 8]),
    "diffusion.noise_shift": ("choice", [2.0, 4.0, 8.0]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.25, 2.0),
    "optim.learning_rate": ("loguniform", 5e-4, 2e-3),
}

METRIC = ("val_nll", "min")
