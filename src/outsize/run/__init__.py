"""Bind a transformers model to stored bytes, and sweep over it."""
