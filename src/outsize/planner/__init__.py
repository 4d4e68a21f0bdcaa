"""Pure functions from a model and a machine to a Plan: footprint, cost, placement. No torch, no I/O."""
