"""Training: options, one run, resuming it."""
