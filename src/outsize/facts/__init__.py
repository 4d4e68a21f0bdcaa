"""What is true before any decision: about a model and about a machine. No torch here."""
