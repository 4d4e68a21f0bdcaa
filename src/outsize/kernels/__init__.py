"""Matmuls over weights as they are stored, each beside its plain-torch reference."""
