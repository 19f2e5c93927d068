"""Which loss weights: the search over a run's config (not built yet; `tutelage train` needs none of it)."""
