"""Weights in motion: layouts, aligned buffers, direct reads and the stream."""
