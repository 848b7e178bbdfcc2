"""Lung nodules on CT slices of 128 x 128, each segmented by four readers (LIDC-IDRI); some saw no nodule."""

BASE = {
    "data": {
        "spatial_dims": 2,
        "shape": [128, 128],
        "fit": "pad",
        "structures": ["nodule"],
        "flip_axes": [0, 1],
        "max_rotation": [30.0],
    },
    "model": {
        "downsampling": [8, 8],
        "patch": [2, 2],
        "latent_channels": 8,
        "image_logits": True,
        "autoencoder_widths": [24, 48, 64],
        "image_widths": [24, 48, 96, 128],
        "denoiser_widths": [96, 128],
        "denoiser_context": True,
    },
    "diffusion": {"noise_shift": 3.0, "input_scale": "redundant"},
    "loss": {"cross_entropy": 1.0, "dice": 0.5, "estimate_dice": False, "decodings": "one"},
    "optim": {"epochs": 60, "batch_size": 8, "validate_every": 10, "validation_samples": 4},
    "sampler": {"method": "dpm++2m", "num_sample_steps": 6, "schedule": "quadratic"},
}

SPACE = {
    "model.latent_channels": ("choice", [4, 8, 16]),
    "diffusion.noise_shift": ("choice", [2.0, 3.0, 6.0]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.1, 2.0),
    "optim.learning_rate": ("loguniform", 3e-4, 2e-3),
}

METRIC = ("val_nll", "min")
