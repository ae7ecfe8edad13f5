"""Whether synthesized images help: comparisons of segmentors, and measures of the images themselves."""
