"""Students of several runs side by side."""
