"""Control branches and joint fusion: the TISynth model. Importing it makes its published names known."""

from cldm.published import ALIASES, TARGETS
from ldm.targets import register

register(TARGETS, ALIASES)
