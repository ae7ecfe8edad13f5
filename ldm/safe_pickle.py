"""The name under which checkpoints were read before there was one reader for all (``common.weights``)."""

from common.weights import read_checkpoint as load_pickled

__all__ = ["load_pickled"]
