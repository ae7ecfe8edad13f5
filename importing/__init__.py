"""Data that others have: brought into this project's layout (``tisynth import``), looked over (``tisynth check``)."""
