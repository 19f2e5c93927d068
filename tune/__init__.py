"""Search: students trained with other values of the config, compared on validation; see `tune.search`."""
