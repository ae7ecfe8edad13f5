"""``tisynth check``: what may be wrong with a data set in this project's layout."""
