"""--reference-latent sample, by a first stage whose posterior has spread."""

import pytest
import torch
import yaml

from cldm.build import create_model
from ldm.checkpoint import save_state_dict
from tests.conftest import SMALL
from tests.synthesis.conftest import close, images, records


@pytest.fixture(scope="module")
def small_vae(scenes, tmp_path_factory):
    """The small model with a Stable Diffusion autoencoder, as YAML and weights."""
    folder = tmp_path_factory.mktemp("vae")
    config = yaml.safe_load(SMALL.read_text())
    params = config["model"]["params"]
    params["channels"] = 4
    params["control_stage_config"]["params"]["in_channels"] = 4
    params["control_stage_config"]["params"]["hint_factor"] = 2
    params["ssl_stage_config"]["params"] |= {"in_channels": 4, "hint_channels": 4}
    params["unet_config"]["params"] |= {"in_channels": 4, "out_channels": 4}
    ddconfig = {
        "ch": 32,
        "ch_mult": [1, 2],
        "in_channels": 3,
        "out_ch": 3,
        "z_channels": 4,
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "resolution": 32,
        "double_z": True,
        "dropout": 0.0,
    }
    params["first_stage_config"] = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": ddconfig},
    }
    (folder / "vae.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(0)
    model = create_model(folder / "vae.yaml", classes=str(scenes / "classes.json"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith(("first_stage", "cond_stage")) and not p.any():
                p.copy_(torch.randn_like(p) * 0.1)
            if "_trainable" in name or name.startswith("ssl_stage_model"):
                p.mul_(2)  # pictures that show their reference
        model.first_stage_model.decoder.conv_out.weight.mul_(4)
    save_state_dict(model.state_dict(), folder / "vae.safetensors")
    return folder


def test_sample_of_a_posterior_with_spread(cli, scenes, command, small_vae, tmp_path):
    lines = (scenes / "inference_set_items.json").read_text().splitlines()[:3]
    items = tmp_path / "items.json"
    items.write_text("\n".join(lines))

    def made(name, *more):
        given = ["--config", small_vae / "vae.yaml", "--ckpt", small_vae / "vae.safetensors", "--txt-file", items]
        cli("inference", *command(tmp_path / name, *given, "--ddim-steps", "2", *more))
        return images(tmp_path / name)

    mode = made("mode")
    sample = made("sample", "--reference-latent", "sample", "--batch-size", "3")
    single = made("single", "--reference-latent", "sample", "--batch-size", "1")
    made("again", "--reference-latent", "sample", "--batch-size", "3")
    assert mode.keys() == sample.keys() == single.keys() and len(mode) == 3
    for name, image in sample.items():
        assert not close(image, mode[name]) and close(image, single[name])
        assert (tmp_path / "sample" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert [record["reference_latent"] for record in records(tmp_path / "sample")] == ["sample"] * 3
