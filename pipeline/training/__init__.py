"""Training, driven by Lightning: the only package that knows it."""
