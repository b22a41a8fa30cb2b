"""Entries of the DVC stages: read parameters, call one function of pipeline.experiment, write one output."""
