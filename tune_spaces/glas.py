"""Glands in H&E images (GlaS@MICCAI 2015), stretched to 512 x 512 as LDSeg's authors do; instances become one class."""

BASE = {
    "data": {
        "spatial_dims": 2,
        "shape": [512, 512],
        "fit": "stretch",
        "in_channels": 3,
        "label_values": [0, 1],
        "structures": ["gland"],
        "foreground_only": True,
        "flip_axes": [0, 1],
    },
    "model": {
        "downsampling": [16, 16],
        "patch": [4, 4],
        "latent_channels": 4,
        "autoencoder_widths": [24, 48, 64],
        "image_widths": [24, 48, 96, 128],
        "denoiser_widths": [64, 96],
    },
    "diffusion": {"noise_shift": 3.0},
    "optim": {"epochs": 120, "batch_size": 1, "validate_every": 20, "ema_decay": 0.99},
}

SPACE = {
    "latent": (
        "options",
        {
            "32x32": {"model.downsampling": [16, 16]},
            "64x64": {
                "model.downsampling": [8, 8],
                "model.autoencoder_widths": [24, 48],
                "model.image_widths": [24, 48, 96],
                "model.denoiser_widths": [48, 96],
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
