"""What a person or a script talks to: the command line, progress, pictures."""
