"""What a check says: one finding for each kind of fault, with examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = {
    ERROR: "commands refuse such data, or their scores mean nothing",
    WARNING: "it is probably not meant so",
    NOTE: "good to know",
}
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of fault.

    Attributes:
        severity: ``error``, ``warning`` or ``note``.
        code: its short name, the same for all data.
        message: what it is, and what to do.
        examples: files or lines, a line each; all of them.
        pictures: images to show on the page, those of a group side by side.
    """

    severity: str
    code: str
    message: str
    examples: Sequence[str] = ()
    pictures: Sequence[tuple[Path, ...]] = field(default=())

    def text(self) -> str:
        """For a terminal: the message, and the first few examples."""
        lines = [f"{self.severity.upper():<8}{self.code}: {self.message}"]
        lines += [f"          {example}" for example in self.examples[:_SHOWN]]
        if len(self.examples) > _SHOWN:
            lines.append(f"          and {len(self.examples) - _SHOWN} more")
        return "\n".join(lines)

    def recorded(self) -> dict[str, Any]:
        """For the report: all examples."""
        shown = {"severity": self.severity, "code": self.code, "message": self.message}
        return {**shown, "count": max(len(self.examples), 1), "examples": list(self.examples)}
