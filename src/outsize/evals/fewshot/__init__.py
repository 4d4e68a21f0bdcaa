"""Few-shot experiments: a task file, examples drawn with a seed, prompts, and the accuracy that comes of them."""
