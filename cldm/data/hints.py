"""Masks as pictures: what the mask branch reads, and what people look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.classes import ClassTable, far_apart_colors
from common.errors import InputError
from common.files import digest
from common.images import IGNORE
from common.pictures import rows_by_id

ENCODINGS = ("index", "palette", "table", "onehot")


def ignored_value(encoding: str) -> float:
    """What an ignored pixel is in all channels of an encoding."""
    return IGNORE / 255 if encoding == "index" else 0.0


class HintEncoder:
    """Encodes class ids for the mask branch.

    * ``index``: id / 255 in three equal channels, as published weights expect; classes lie 1/255 apart, ignored pixels
      are 1.
    * ``palette``: one far-apart color a class (``far_apart_colors``, whatever the table's colors for pictures are, so
      that a trained model depends on the order of the classes alone), ignored pixels black.
    * ``table``: the class table's own colors, such as a palette learned by ``scripts.posterior_learning``; ignored
      pixels black.
    * ``onehot``: one channel a class, ignored pixels zero in all of them.

    Args:
        encoding: one of ``ENCODINGS``.
        classes: class table; needed by all but ``index``.

    Attributes:
        channels: number of channels C of a hint.
        fingerprint: a text that is another for each encoding of the ids in files.

    Raises:
        InputError: unknown encoding, or a class table is lacking.
    """

    def __init__(self, encoding: str = "index", classes: ClassTable | None = None) -> None:
        if encoding not in ENCODINGS:
            raise InputError(f"hint_encoding {encoding}: must be one of {', '.join(ENCODINGS)}")
        if encoding == "index":
            table = np.repeat(np.arange(256, dtype=np.float32)[:, None] / 255, 3, axis=1)
        elif classes is None:
            raise InputError(f"hint_encoding {encoding}: needs a class table; set classes to its name or file")
        elif encoding in ("palette", "table"):
            colors = far_apart_colors(len(classes)) if encoding == "palette" else classes.palette
            table = rows_by_id(colors).astype(np.float32) / 255
        else:
            table = rows_by_id(np.eye(len(classes), dtype=np.float32))
        self.encoding, self.channels = encoding, table.shape[1]
        self.fingerprint = f"{encoding} {digest(table.tolist())[:8]}"
        if classes is not None and classes.ignore_index != IGNORE:
            self.fingerprint += f", ignoring {classes.ignore_index}"
        if classes is not None and (of_id := classes.labels.of_id) is not None:
            self.fingerprint += f", of ids {digest(list(of_id))[:8]}"
        self._table = table.T.copy()  # (C, 256): id -> values; those of IGNORE are 0, except for index
        self._valid = None if classes is None else (np.arange(256) < len(classes)) | (np.arange(256) == IGNORE)

    def __call__(self, mask: NDArray[Any]) -> torch.Tensor:
        """Encodes a mask.

        Args:
            mask: (H, W) uint8 class ids, 255 for ignored pixels, as ``Labels.read`` gives them.

        Returns:
            (C, H, W) float32 in [0, 1].

        Raises:
            InputError: an id that is neither a class nor 255 (known only with a class table).
        """
        if self._valid is not None and not self._valid[mask].all():
            raise InputError(f"mask: class ids {np.unique(mask[~self._valid[mask]])[:10].tolist()} are no classes")
        return torch.from_numpy(np.take(self._table, mask, axis=1))  # (C, H, W)

    def check_channels(self, read: int, name: str) -> None:
        """Refuses a mask branch that does not read these hints.

        Args:
            read: channels that it reads.
            name: of what is to be encoded, for the message.

        Raises:
            InputError: hints have another number of channels.
        """
        if self.channels != read:
            raise InputError(
                f"{name}: masks as hint_encoding {self.encoding} have {self.channels} channels, the model's "
                f"mask branch reads {read} (control_stage_config.params.hint_channels); name the class table that it "
                "was trained with (‹classes›), or change the model's configuration"
            )

    def decode(self, hint: torch.Tensor) -> NDArray[Any]:
        """The class ids that a hint encodes, for pictures.

        Args:
            hint: (C, H, W), as this encoder made it.

        Returns:
            (H, W) uint8; 255 where all channels are those of ignored pixels.
        """
        # from IGNORE down, so that ignored comes before unused ids of the same values
        values, first = np.unique(self._table.T[::-1], axis=0, return_index=True)
        flat = hint.detach().cpu().float().flatten(1).T  # (HW, C)
        nearest = torch.cdist(flat, torch.from_numpy(values)).argmin(1).numpy()
        return (IGNORE - first[nearest]).astype(np.uint8).reshape(hint.shape[1:])
