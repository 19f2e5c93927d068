"""One run, end to end: config, data, training, evaluation, report, tracking, command line."""
