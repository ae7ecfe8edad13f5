"""Class tables, lists of items, hints, references, and the loaders that feed training and inference."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # albumentations asks the network for newer versions at import
