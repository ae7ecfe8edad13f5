"""The options of a segmentor, where other programs look for them; see ``common.segmentor_options``."""

from common.segmentor_options import (
    TRICKS,
    PredictOptions,
    SegmentorOptions,
    TestOptions,
    TrainOptions,
)

__all__ = ["TRICKS", "PredictOptions", "SegmentorOptions", "TestOptions", "TrainOptions"]
