"""What a training says at its start."""

from __future__ import annotations

from collections import Counter

from cldm.control_ldm import ControlLDM
from ldm.checkpoint_names import module_of


def training_report(model: ControlLDM, origins: dict[str, str]) -> str:
    """What trains and what does not, with numbers of parameters, and where each module's weights came from.

    Args:
        model: the model about to be trained.
        origins: module -> where its weights came from.
    """
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = module_of(name)
        total[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    width = max(map(len, total))
    lines = [f"{'module':<{width}} {'parameters':>14} {'that train':>14}  weights"]
    for part, count in total.items():
        origin = origins.get(part) or origins.get(part.split(".")[0]) or "random"
        lines.append(f"{part:<{width}} {count:>14,} {trained[part]:>14,}  {origin}")
    lines.append(f"{'together':<{width}} {sum(total.values()):>14,} {sum(trained.values()):>14,}")
    return "\n".join(lines)
