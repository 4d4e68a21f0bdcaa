"""The CPU kernels in C: building, loading and calling them."""
