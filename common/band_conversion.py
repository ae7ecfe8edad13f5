"""How images that one model makes become those that another one reads, by what is stated of their bands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.bands import Bands
from common.errors import InputError


@dataclass(frozen=True)
class Conversion:
    """How values that one model makes, in 0..255 of its ranges, become those that another one reads.

    Attributes:
        index: of each band that is read, which one of those that are made, from 0.
        factor: of each.
        shift: added then.
    """

    index: tuple[int, ...]
    factor: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def same(self) -> bool:
        """Whether nothing changes."""
        return (
            self.index == tuple(range(len(self.index))) and set(self.factor) == {1.0} and not any(map(abs, self.shift))
        )


def conversion(made: Bands | None, read: Bands | None, who: str) -> Conversion:
    """See ``Conversion``; None stands for three bands of 8 bits.

    Args:
        made: what is stated of the bands of the model that makes images.
        read: of the one that reads them.
        who: the latter, for messages.

    Raises:
        InputError: it reads bands that are not made, numbers of other bits, or each image by its own range.
    """
    if read is not None and read.per_image is not None:
        raise InputError(f"{who}: scales each image by itself (bands.per_image), which only files can be")
    if read is None and made is not None and made.dtype != "uint8":
        raise InputError(f"{who}: reads three bands of 8 bits, the model makes {made.dtype}; train it with ‹bands›")
    ours, theirs = (bands or Bands(ranges=[[0, 255]] * 3) for bands in (made, read))
    if (made is None or read is None or read.take is None) and ours.count != theirs.count:
        raise InputError(f"{who}: reads {theirs.count} bands, the model makes {ours.count}")
    chosen = range(theirs.count) if read is None or read.take is None else theirs.numbers
    numbers = list(range(theirs.count)) if read is None or read.take is None else ours.numbers
    if missing := [number for number in chosen if number not in numbers]:
        raise InputError(f"{who}: reads band {missing[0]}, which the model does not make; it makes {ours.told}")
    index = tuple(numbers.index(number) for number in chosen)
    low, high = np.array([ours.ranges[i] for i in index]).T
    own_low, own_high = np.array(theirs.ranges).T
    factor, shift = (high - low) / (own_high - own_low), 255 * (low - own_low) / (own_high - own_low)
    return Conversion(index, tuple(factor.tolist()), tuple(shift.tolist()))
