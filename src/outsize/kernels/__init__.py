"""CPU matmul kernels and their plain-torch twins."""
