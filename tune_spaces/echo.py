"""2D+t: the beating chambers of `python -m ldseg.data.phantom --kind echo`, 12 frames of 64 x 64; a known posterior."""

BASE = {
    "data": {
        "spatial_dims": 3,
        "shape": [64, 64, 12],
        "fit": "pad",
        "flip_axes": [0],
        "augment_intensity": False,
    },
    "model": {
        "downsampling": [8, 8, 1],
        "patch": [2, 2, 1],
        "latent_channels": 4,
        "image_logits": True,
        "image_widths": [16, 32, 64],
        "autoencoder_widths": [16, 32, 48],
        "denoiser_widths": [32, 64],
        "denoiser_context": True,
        "norm_group": 1,
    },
    "diffusion": {"noise_shift": 4.0, "input_scale": "redundant"},
    "loss": {
        "timestep_weight": "alphas_cumprod",
        "cross_entropy": 0.5,
        "dice": 0.5,
        "decodings": "one",
        "estimate_dice": False,
    },
    "optim": {"epochs": 60, "batch_size": 2, "validate_every": 10, "validation_samples": 4, "ema_decay": 0.995},
    "sampler": {"method": "dpm++2m", "num_sample_steps": 10, "schedule": "quadratic"},
}

SPACE = {
    "model.latent_channels": ("choice", [2, 4, 8]),
    "diffusion.noise_shift": ("choice", [2.0, 4.0, 8.0]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.25, 2.0),
    "optim.learning_rate": ("loguniform", 5e-4, 2e-3),
}

METRIC = ("val_nll", "min")
