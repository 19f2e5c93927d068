"""What is trained: one shared encoder, one Hugging Face head a task."""
