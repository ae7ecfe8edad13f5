"""Matplotlib as all figures use it: no window, and names are text, not mathematics."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

plt.rcParams["text.parse_math"] = False  # a class may be called "$x"

__all__ = ["plt"]
