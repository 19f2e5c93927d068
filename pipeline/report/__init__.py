"""A finished run's outputs → report.json, report.md, figures."""
