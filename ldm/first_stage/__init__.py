"""Training a first stage on images alone, and how good its reconstructions are."""
