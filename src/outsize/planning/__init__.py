"""Pure functions from facts to a Plan: footprint, cost, placement. No torch, no I/O."""
