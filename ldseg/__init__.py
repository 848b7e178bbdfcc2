"""LDSeg: segmentation of medical images by diffusion in a small latent space (Zaman et al., arXiv 2407.12952)."""

from pathlib import Path

__version__ = "0.2.0"

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages; in a checkout also of platform/, models/ and constraints.txt."""
