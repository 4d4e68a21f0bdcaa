"""Writes a model again in another weight format."""
