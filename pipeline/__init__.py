"""Tractable steering of diffusion models: the library behind the stages."""
