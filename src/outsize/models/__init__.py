"""What is true of a model: its files, its architecture, the bytes it needs. No torch, except in tracing."""
