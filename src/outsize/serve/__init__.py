"""One running model for many clients: HTTP in front, the engine's service behind."""
