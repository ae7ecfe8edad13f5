"""The closed loop: where a segmentor is weak, images are painted, until they help no more (``tisynth improve``)."""
