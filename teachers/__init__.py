"""Examples → soft targets: teachers, their Ray actors, the store and the aggregation."""
