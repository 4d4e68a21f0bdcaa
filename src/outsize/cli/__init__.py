"""The command line: arguments, tables, plots and progress bars."""
