"""Femur and tibia in knee MR (the demo cases of LDSeg, from the OAI), stretched to 128 x 128 x 256 as the authors do.

The working grid is in the order of the canonical axes of the files' header: 240, 104 and 160 voxels become these.
"""

BASE = {
    "data": {
        "spatial_dims": 3,
        "shape": [256, 128, 128],
        "fit": "stretch",
        "label_values": [0, 1, 2],
        "structures": ["femur", "tibia"],
        "flip_axes": [2],
    },
    "model": {
        "downsampling": [8, 8, 8],
        "patch": [4, 4, 4],
        "latent_channels": 4,
        "autoencoder_widths": [32, 48],
        "image_widths": [32, 64, 96],
        "denoiser_widths": [48, 96],
    },
    "diffusion": {"noise_shift": 3.0},
    "optim": {"epochs": 60, "batch_size": 1, "validate_every": 20, "ema_decay": 0.99},
}

SPACE = {
    "latent": (
        "options",
        {
            "32x16x16": {"model.downsampling": [8, 8, 8]},
            "16x8x8": {
                "model.downsampling": [16, 16, 16],
                "model.autoencoder_widths": [32, 48, 64],
                "model.image_widths": [32, 64, 96],
                "model.denoiser_widths": [64],
            },
        },
    ),
    "model.latent_channels": ("choice", [1, 4, 8]),
    "diffusion.noise_shift": ("choice", [1.0, 3.0, 6.0]),
    "loss.denoising": ("loguniform", 0.3, 3.0),
    "loss.dice": ("loguniform", 0.5, 4.0),
    "optim.learning_rate": ("loguniform", 3e-4, 2e-3),
}

METRIC = ("val_dice", "max")
