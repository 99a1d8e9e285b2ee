"""Reward-guided text generation for transformers."""

__version__ = "0.1.0"
