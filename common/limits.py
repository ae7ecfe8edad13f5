"""How far numbers may go that people give, on the command line and in configurations: beyond is a slip of the hand."""

COUNT = 10**9  # steps, images, pixels of a class
WORKERS = 256  # processes that read files
BATCH = 2**16  # items at once
PIXELS = 2**16  # side of an image; Pillow and OpenCV stop about there
NUMBER = 1e9  # factors, scales, distances
