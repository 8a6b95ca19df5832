"""Helpers of the tests: registries that misbehave, mounts, models, builders of content."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
"""The top of the checkout."""
