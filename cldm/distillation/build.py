"""A student and its teacher, built of one configuration."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from cldm.build import create_model
from cldm.control_ldm import ControlLDM
from cldm.distillation.schema import Distillation
from cldm.distillation.student import ConsistencyStudent
from common.configuration import plain
from common.errors import InputError
from common.files import file_hash
from ldm.checkpoint import load_weights

TEACHER = "cldm.control_ldm.ControlLDM"
OF_THE_STUDENT = ("distillation", "lora", "lora_targets")  # what its parameters have beside the teacher's


def teacher_of(config: DictConfig) -> ControlLDM:
    """The model that a student's configuration names as its teacher, with its weights.

    Raises:
        InputError: no such file, one of other content than the distillation began with, or it does not fit.
    """
    of = Distillation(**plain(config.model.params.distillation))
    path = Path(of.teacher)
    if not path.exists():
        raise InputError(
            f"{path}: no such checkpoint; a distillation reads its teacher again: name its file by "
            "model.params.distillation.teacher=FILE"
        )
    if (found := file_hash(path)) != of.teacher_hash:
        raise InputError(f"{path}: is not the teacher that this distillation began with ({found}, {of.teacher_hash})")
    params = {key: value for key, value in plain(config.model.params).items() if key not in OF_THE_STUDENT}
    return create_model(DictConfig({"model": {"target": TEACHER, "params": params}}), path, use_ema=of.use_ema)


def build_student(config: DictConfig, resumed: Path | None = None) -> tuple[ConsistencyStudent, dict[str, str]]:
    """A student with its teacher's weights, beside its teacher; and by module where its weights come from.

    Args:
        config: of the training; ``model`` describes the student.
        resumed: the checkpoint whose weights will take the place of the teacher's.

    Raises:
        InputError: see ``teacher_of``.
    """
    teacher = teacher_of(config)
    student = create_model(config)
    assert isinstance(student, ConsistencyStudent)
    path = student.distillation.teacher
    load_weights(student, teacher.state_dict(), name=path)
    student.learn_from(teacher)
    return student, dict.fromkeys(dict(student.named_children()), f"from {resumed or path}")
