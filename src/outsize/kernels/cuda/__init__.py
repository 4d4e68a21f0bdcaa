"""GPU kernels in Triton over packed weights as they are stored."""
