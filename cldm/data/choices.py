"""How a reference of another shape than its mask gets that shape; a command line lists it, so nothing is imported."""

REFERENCE_FITS = ("crop", "stretch")
