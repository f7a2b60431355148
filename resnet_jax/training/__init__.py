"""Training: state, steps, optimiser, checkpoints, and the loop that binds them to a folder."""
