"""The diffusion prior: schedules, denoisers, networks."""
