"""Cohorts, volumes with their geometry, the working grid, training items and phantoms."""
