"""Training: state, steps, optimiser, checkpoints, and the loop that binds them to a run's folder."""
