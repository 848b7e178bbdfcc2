"""Commands on the model registry."""
