"""LDSeg: segmentation of medical images by diffusion in a small latent space (Zaman et al., arXiv 2407.12952)."""

__version__ = "0.1.0"
