"""What a configuration says of a distilled model: whose student it is, and what it has learned of guidance."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from common.schema import Name, Schema

Scale = Annotated[float, Field(ge=0, le=1000)]


class Distillation(Schema):
    """The section ``distillation`` of a student's parameters; see ``cldm.distillation.student``."""

    teacher: Name
    teacher_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    use_ema: bool = False
    scale: Annotated[list[Scale], Field(min_length=1, max_length=2)] = [9.0]
    mask_scale: Scale = 1.0
    reference_scale: Scale = 1.0
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    skip: Annotated[int, Field(ge=1, le=100_000)] | None = None
    huber_c: Annotated[float, Field(gt=0, le=100)] = 1e-3

    @model_validator(mode="after")
    def _in_order(self) -> Distillation:
        if self.scale[0] > self.scale[-1]:
            raise ValueError(f"scale: {self.scale[0]:g} to {self.scale[-1]:g}: write the smaller one first")
        return self

    @property
    def guidance(self) -> str:
        """What of guidance the student has within, in words."""
        text = " to ".join(f"{scale:g}" for scale in self.scale)
        rescale = f", rescaled by {self.guidance_rescale:g}" if self.guidance_rescale else ""
        return f"text {text}, mask {self.mask_scale:g}, reference {self.reference_scale:g}{rescale}"
