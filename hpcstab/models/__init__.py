"""Trainable systems: one folder a model."""
