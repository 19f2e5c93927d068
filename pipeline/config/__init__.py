"""A run's config: schema, loading, checks, views."""
