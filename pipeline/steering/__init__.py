"""Steering: what a tractable prior knows about an image, brought into a diffusion model's estimate of it."""
