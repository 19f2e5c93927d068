"""A data set → checked splits of one task."""
