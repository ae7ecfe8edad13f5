"""Filter and resample: pure functions on arrays and file names, and the reports on them.

Knows neither the synthesis model nor a segmentation library; the scripts join them.
"""
