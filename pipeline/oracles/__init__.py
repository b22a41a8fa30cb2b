"""Worlds whose posteriors are exact: the judges of samplers, and of steering."""
