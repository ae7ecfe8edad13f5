"""What trainings have in common: checkpoints, going on with a run, a clean end on a signal, loaders."""
