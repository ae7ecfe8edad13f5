"""A page's options on tiny models, of the demonstration's scenes of 32 px."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from cldm.build import create_model
from cldm.distillation.options import TARGET
from tests.conftest import SMALL
from tests.segmentation.pixel_backbone import write_config
from tests.synthesis.conftest import ckpt  # noqa: F401 (a fixture)
from web.options import WebOptions


@pytest.fixture(scope="session")
def segmentor(scenes, tmp_path_factory):
    """Config and weights of a segmentor that looks at single pixels."""
    folder = tmp_path_factory.mktemp("segmentor")
    generator = torch.Generator().manual_seed(0)
    head = {"weight": torch.randn(5, 3, 1, 1, generator=generator), "bias": torch.randn(5, generator=generator)}
    torch.save(
        {"state_dict": {f"decode_head.conv_seg.{name}": value for name, value in head.items()}}, folder / "s.pth"
    )
    write_config(folder / "s.py", 5, str(scenes / "classes.json"), str(scenes))
    return str(folder / "s.py"), str(folder / "s.pth")


@pytest.fixture(scope="session")
def options(scenes, ckpt, segmentor):  # noqa: F811
    return WebOptions(
        config=SMALL,
        model=ckpt,
        classes=str(scenes / "classes.json"),
        size=32,
        references=scenes / "ref_img",
        masks=scenes / "label_test",
        segmentor=segmentor,
        real_img_path=scenes / "img_train",
        real_label_path=scenes / "label_train",
        scale=2.0,
        device="cpu",
        port=0,
    )


@pytest.fixture(scope="session")
def studio(options):
    from web.studio import open_studio

    return open_studio(options)


@pytest.fixture(scope="session")
def distilled(studio):
    """The same with a distilled model, with random weights."""
    content = OmegaConf.load(SMALL)
    content.model.target = TARGET
    content.model.params.use_ema = True
    content.model.params.distillation = {"teacher": "teacher.ckpt", "teacher_hash": "0" * 16}
    model = create_model(content, classes=studio.class_table)
    return replace(studio, model=model, options=replace(studio.options, scale=None))
