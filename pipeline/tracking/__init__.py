"""Runs recorded in MLflow."""
