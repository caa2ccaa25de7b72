"""This package reads and compares finished results, for stages and commands."""
