"""What stages and commands share of finished results."""
