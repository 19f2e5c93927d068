"""What a command prints: bars, lines, tables."""
