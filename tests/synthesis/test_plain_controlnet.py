"""``cldm_v21.yaml`` as published: a plain ControlNet on SD 2.1, with the names that its file has."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cldm.build import create_model, load_config, outline
from ldm.checkpoint import save_state_dict
from tests.conftest import ROOT, SMALL
from tests.synthesis.conftest import records

NETWORK = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 1024,
    "legacy": False,
    "use_checkpoint": True,
}


def published(small=False):
    """The file's content; shrunken in widths alone."""
    network = NETWORK | ({"model_channels": 32, "num_head_channels": 16, "context_dim": 32} if small else {})
    vae = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "dropout": 0.0,
        "ch": 32 if small else 128,
        "ch_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    }
    text = {"freeze": True, "layer": "penultimate"}
    if small:
        text["text_config"] = {"embed_dim": 32, "width": 32, "heads": 2, "layers": 2}
    return OmegaConf.create(
        {
            "model": {
                "target": "cldm.cldm.ControlLDM",
                "params": {
                    "linear_start": 0.00085,
                    "linear_end": 0.0120,
                    "num_timesteps_cond": 1,
                    "log_every_t": 200,
                    "timesteps": 1000,
                    "first_stage_key": "jpg",
                    "cond_stage_key": "txt",
                    "control_key": "hint",
                    "image_size": 64,
                    "channels": 4,
                    "cond_stage_trainable": False,
                    "conditioning_key": "crossattn",
                    "monitor": "val/loss_simple_ema",
                    "scale_factor": 0.18215,
                    "use_ema": False,
                    "only_mid_control": False,
                    "control_stage_config": {
                        "target": "cldm.cldm.ControlNet",
                        "params": {**network, "hint_channels": 3},
                    },
                    "unet_config": {
                        "target": "cldm.cldm.ControlledUnetModel",
                        "params": {**network, "out_channels": 4},
                    },
                    "first_stage_config": {
                        "target": "ldm.models.autoencoder.AutoencoderKL",
                        "params": {
                            "embed_dim": 4,
                            "monitor": "val/rec_loss",
                            "ddconfig": vae,
                            "lossconfig": {"target": "torch.nn.Identity"},
                        },
                    },
                    "cond_stage_config": {
                        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
                        "params": text,
                    },
                },
            }
        }
    )


def test_full_size_is_stable_diffusion_with_a_branch():
    shapes = {name: tuple(weight.shape) for name, weight in outline(load_config(published())).state_dict().items()}
    assert not any("ssl_stage" in name or "_trainable" in name for name in shapes)
    assert shapes["model.diffusion_model.output_blocks.11.1.proj_in.weight"] == (320, 320)  # linear, as SD 2 has it
    assert shapes["control_model.middle_block_out.0.weight"] == (1280, 1280, 1, 1)
    ours = outline(load_config(ROOT / "configs" / "model" / "cldm_v21.yaml")).state_dict()
    assert {name: tuple(weight.shape) for name, weight in ours.items()} == shapes


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The shrunken file, and weights none of which is zero."""
    folder = tmp_path_factory.mktemp("plain")
    OmegaConf.save(published(small=True), folder / "cldm_v21.yaml")
    base = OmegaConf.load(SMALL)
    del base["model"]
    OmegaConf.save(base, folder / "base.yaml")
    torch.manual_seed(0)
    model = create_model(folder / "cldm_v21.yaml")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith(("first_stage", "cond_stage")) and not p.any():
                p.copy_(torch.randn_like(p) * 0.1)
    save_state_dict(model.state_dict(), folder / "plain.safetensors")
    return folder, model


def test_features_are_added_as_controlnet_does(plain):
    """Zhang et al. 2023, equation 2: skips and middle plus the branch's maps; the middle alone if asked."""
    model = plain[1]
    torch.manual_seed(1)
    x, text, t = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32), torch.tensor([400])
    hint = torch.rand(1, 3, 64, 64)
    unet = model.model.diffusion_model
    with torch.no_grad():
        found = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [text]})
        maps = model.control_model(x, hint, t, text)
        emb = unet.embed_time(t, x.dtype)
        skips = list(unet.encode(x, emb, text))
        h = unet.middle_block(skips[-1], emb, text) + maps.pop()
        middle_alone = h
        for block in unet.output_blocks:
            h = block(torch.cat([h, skips.pop() + maps.pop()], 1), emb, text)
        assert torch.equal(found, unet.out(h))
        unet.only_mid_control = True
        only = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [text]})
        unet.only_mid_control = False
        skips, h = list(unet.encode(x, emb, text)), middle_alone
        for block in unet.output_blocks:
            h = block(torch.cat([h, skips.pop()], 1), emb, text)
        assert torch.equal(only, unet.out(h)) and not torch.equal(only, found)


def test_trains_and_samples(cli, plain, scenes, tmp_path):
    folder, model = plain
    config = folder / "cldm_v21.yaml"
    size = ["data.params.train.params.size=64", "data.params.validation.params.size=64", "data.params.batch_size=1"]
    out = cli(
        "train",
        "--base",
        folder / "base.yaml",
        "--config-model",
        config,
        "-n",
        "run",
        "-l",
        tmp_path,
        "--gpus",
        "cpu",
        "--data-root",
        scenes,
        "--train-txt-file",
        "train_set_items.json",
        "--val-txt-file",
        "test_set_items.json",
        "--pretrain-path",
        folder / "plain.safetensors",
        "--max_steps",
        "1",
        "--limit_val_batches",
        "1",
        *size,
        "lightning.callbacks.image_logger.params.max_images=0",
    )
    assert "trained 1 steps" in out
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    after = torch.load(last, weights_only=True)["state_dict"]
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(after[n], p)}
    assert moved == {"control_model"}
    items = [json.loads(line) for line in (scenes / "inference_set_items.json").read_text().splitlines()][:1]
    for item in items:
        item.pop("ref_image")  # there is no reference to read
    (tmp_path / "items.json").write_text("\n".join(map(json.dumps, items)))
    cli(
        "inference",
        "--config",
        config,
        "--ckpt",
        last,
        "--data-root",
        scenes,
        "--txt-file",
        tmp_path / "items.json",
        "--outdir",
        tmp_path / "out",
        "--ddim-steps",
        "2",
        "--gpus",
        "cpu",
        "--num-workers",
        "0",
        "--size",
        "64",
    )
    (image,) = (tmp_path / "out").glob("*.jpg")
    assert Image.open(image).size == (64, 64)
    (record,) = records(tmp_path / "out")
    assert record["reference"] is None and record["reference_hash"] is None
    sheet = ["--samples", tmp_path / "out", "--data-root", scenes, "--items", tmp_path / "items.json"]
    cli("contact_sheet", *sheet, "--classes", scenes / "classes.json", "--size", 16, "--out", tmp_path / "sheet.png")
    row = np.array(Image.open(tmp_path / "sheet.png"))[18:]
    assert (row[:, 20:36] == 255).all() and not (row[:, 40:56] == 255).all()  # no reference; synthesized
    again = [
        "--config",
        config,
        "--ckpt",
        last,
        "--data-root",
        scenes,
        "--txt-file",
        tmp_path / "items.json",
        "--outdir",
        tmp_path / "out",
        "--ddim-steps",
        "2",
        "--gpus",
        "cpu",
        "--size",
        "64",
    ]
    assert "1 images are in" in cli("inference", *again)
    assert "this model reads no reference" in cli.refused("inference", *again, "--reference-scale", "2")
    cli("inference", *again, "--mask-scale", "2", "--remake")
    assert records(tmp_path / "out")[0]["mask_scale"] == 2.0


def test_what_only_tisynth_has_is_refused(cli, plain, scenes, tmp_path):
    line = [
        "--base",
        plain[0] / "base.yaml",
        "--config-model",
        plain[0] / "cldm_v21.yaml",
        "--data-root",
        scenes,
        "--dry-run",
        "--train-txt-file",
        "train_set_items.json",
        "--val-txt-file",
        "test_set_items.json",
        "--gpus",
        "cpu",
        "--allow-mismatch",
        "all",
        "-l",
        tmp_path,
    ]
    assert "is about TISynth's two branches" in cli.refused("train", *line, "--model.params.trainable", "published")
