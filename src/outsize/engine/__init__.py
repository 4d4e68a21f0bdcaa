"""Runs a transformers model over weights that rest in several tiers."""
