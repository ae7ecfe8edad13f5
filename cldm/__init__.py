"""Control branches and joint fusion: the TISynth model."""
