"""Filter and resample: pure functions on arrays and file names, and the reports on them.

Knows neither the synthesis model nor a segmentation library; the scripts join them.
"""


class PostProcessingError(ValueError):
    """Something the user gave is wrong. The message names the file or folder and says what to do."""
