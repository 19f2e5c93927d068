"""Training students and teachers: the loop, its parts, and the Ray processes around it."""
