"""What is true of a machine: devices, free memory, measured and assumed rates. No torch here."""
