"""Bytes at rest and in motion: readers, buffers, streams."""
