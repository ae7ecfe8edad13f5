"""How a reference of another shape than its mask gets that shape; a command line lists it, so nothing is imported."""

REFERENCE_FITS = ("crop", "stretch")  # how one of another shape than its mask's gets that shape
REFERENCE_FROM = ("crop", "elsewhere")  # training: where in an image that of a crop is
