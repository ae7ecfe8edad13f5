"""The names by which solvers and their time steps are chosen. Imports nothing, so that a command line can list them."""

SAMPLERS = ("ddim", "dpmsolver++", "unipc", "euler")
SPACINGS = ("auto", "leading", "trailing")
