"""What a guided step, an image and a training step cost, beside a peer's, and with each saving switched off."""
