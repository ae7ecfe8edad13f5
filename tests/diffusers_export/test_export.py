"""A model as a folder of diffusers: the same images in a process without this project, and the same weights back."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from cldm.build import create_model
from cldm.conditions import Conditions
from cldm.data.hints import HintEncoder
from cldm.diffusers_export import export as exporting
from cldm.diffusers_export.remote.pipeline import TISynthPipeline
from cldm.distillation.options import TARGET
from common.classes import load_class_table
from ldm.checkpoint import save_state_dict
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.guidance import ClassifierFreeGuidance
from ldm.models.sampling import sample
from tests.conftest import ROOT, without_a_class_table

STEPS, SCALES = 3, ((1.0, 0.0), (9.0, 0.0), (9.0, 0.7))  # of guidance, and its rescale
PROMPT = "a satellite image of Road, water; 12 trees"


def shrunken_v15():
    """The published layout, all its parts, narrow."""
    config = OmegaConf.load(ROOT / "configs" / "model" / "tisynth_v15.yaml")
    params = config.model.params
    for part in ("control_stage_config", "ssl_stage_config", "unet_config"):
        params[part].params.update(model_channels=8, norm_groups=8, context_dim=16, num_heads=2)
    params.first_stage_config.params.ddconfig.update(ch=8, norm_groups=8)
    params.cond_stage_config.params = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
    return config


def shrunken_tiny():
    """The demonstration's layout, all its parts, narrow."""
    config = OmegaConf.load(ROOT / "configs" / "model" / "tisynth_tiny.yaml")
    params = config.model.params
    for part in ("control_stage_config", "ssl_stage_config", "unet_config"):
        params[part].params.update(model_channels=8, context_dim=16, num_heads=2)
    params.cond_stage_config.params.update(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16)
    return config


BANDS = {"ranges": [[100, 1100], [0, 3000], [0, 10], [0, 2000]], "dtype": "uint16", "nodata": 0.0, "rgb": [3, 2, 1]}


def of_bands():
    """The same of four bands in 16 bits, by a basis of their own."""
    config = shrunken_tiny()
    params, basis = config.model.params, np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    stage = {"factor": 4, "deviations": [[0.5] * 4] * 2, "basis": basis.tolist()}
    params.first_stage_config.params = stage
    params.update(channels=12, scale_factor=1.0, bands=BANDS)
    for part in ("control_stage_config", "ssl_stage_config", "unet_config"):
        params[part].params.in_channels = 12
    params.unet_config.params.out_channels = params.ssl_stage_config.params.hint_channels = 12
    return config


def student():
    """The demonstration's layout, distilled."""
    config = shrunken_tiny()
    config.model.target = TARGET
    config.model.params.distillation = {"teacher": "teacher.ckpt", "teacher_hash": "0" * 16}
    return config


LAYOUTS = {"tiny": shrunken_tiny, "v15": shrunken_v15, "bands": of_bands, "student": student}


def nothing_is_zero(model):
    """Zero convolutions and norms moved, so that whatever is mixed up shows."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1 or not weight.any():
                weight += 0.05 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model, weights and folder of all layouts, exported by the command's own call."""
    place = tmp_path_factory.mktemp("exported")
    made = {}
    for name, classes in (("tiny", "MBRSC"), ("v15", None), ("bands", "MBRSC"), ("student", "MBRSC")):
        config = place / f"{name}.yaml"
        OmegaConf.save(LAYOUTS[name](), config)
        torch.manual_seed(0)
        model = nothing_is_zero(create_model(config, **({} if classes is None else {"classes": classes})))
        save_state_dict(model.state_dict(), place / f"{name}.safetensors")
        options = exporting.ExportOptions(
            config=config, weights=place / f"{name}.safetensors", out=place / name, classes=classes
        )
        exporting.export(options)
        made[name] = (model, place / f"{name}.safetensors", place / name)
    return made


def test_an_image_is_the_same_in_a_process_without_this_project(folders, tmp_path):
    tasks, given = [], {}
    for name, (model, _, folder) in folders.items():
        draw = torch.Generator().manual_seed(1)
        side = 64
        mask = torch.randint(0, 5, (1, 8, 8), generator=draw).repeat_interleave(8, 1).repeat_interleave(8, 2)
        mask[:, :8] = 255
        given[name] = {
            "mask": mask,
            "reference": 2 * torch.rand(1, model.image_bands, side, side, generator=draw) - 1,
            "noise": torch.randn(1, model.channels, side // model.factor, side // model.factor, generator=draw),
        }
        save_file(given[name], tmp_path / f"{name}.in")
        task = {"folder": str(folder), "given": str(tmp_path / f"{name}.in"), "out": str(tmp_path / f"{name}.out")}
        how = {"steps": STEPS, "scales": SCALES}
        if name == "student":  # LCM's later steps add noise that is drawn otherwise here
            how = {"steps": 1, "scales": ((1.0, 0.0),)}
        tasks.append({**task, "prompt": PROMPT, **how})
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("paint_alone.py"), json.dumps(tasks)],
        cwd=empty,
        env={**environment, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name, (model, *_) in folders.items():
        made = load_file(tmp_path / f"{name}.out")
        table = None if model.classes is None else load_class_table(model.classes)
        hint = HintEncoder(model.hint_encoding, table)(given[name]["mask"][0].byte().numpy())[None]
        with torch.no_grad():
            text = model.get_learned_conditioning([PROMPT])
            cond = Conditions(mask=hint, reference=model.image_latent(given[name]["reference"]), text=text)
            for scale, rescale, steps, sampler in (
                [(1.0, 0.0, 1, "lcm")] if name == "student" else [(*one, STEPS, "ddim") for one in SCALES]
            ):
                how = {"sampler": sampler, "guidance_scale": scale}
                if rescale:
                    how["guidance"] = partial(ClassifierFreeGuidance, rescale=rescale)
                latent = sample(model, cond, model.without_text(cond), given[name]["noise"], steps, **how)
                ours = (model.decode_first_stage(latent) / 2 + 0.5).clamp(0, 1)
                assert ours.std() > 0.01
                assert (ours - made[f"{scale} {rescale}"]).abs().max() < 1e-4, (name, scale, rescale)


def test_what_diffusers_has_is_diffusers_own(folders):
    index = json.loads((folders["v15"][2] / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"] and index["controlnet"] == ["diffusers", "ControlNetModel"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"] and index["scheduler"][0] == "diffusers"
    student = json.loads((folders["student"][2] / "model_index.json").read_text())
    assert (student["scheduler"][1], student["steps"], student["scale"]) == ("LCMScheduler", 4, 1.0)
    for name, (_, _, folder) in folders.items():
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
        own = {"pipeline.py", "unet/tisynth_unet.py", "reference_branch/tisynth_branch.py"}
        assert files == own | (set() if name == "v15" else {"controlnet/tisynth_branch.py", "vae/tisynth_vae.py"})
        assert not any(path.suffix in (".bin", ".pt", ".ckpt") for path in folder.rglob("*"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_weights_come_back(folders, name, cli, tmp_path):
    model, weights, folder = folders[name]
    assert "model.safetensors" in cli("import_diffusers", folder, tmp_path / "back")
    before, after = load_file(weights), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    again = create_model(tmp_path / "back" / "model.yaml", tmp_path / "back" / "model.safetensors")
    assert again.hint_encoding == model.hint_encoding and again.classes == model.classes
    assert again.bands == model.bands


def test_numbers_of_bands_are_scaled_as_here(folders, tmp_path):
    """What the pipeline makes of a file's numbers, and of its own, and what the card says of both."""
    from common.bands import read_pixels
    from common.rasters import write_geotiff

    model, _, folder = folders["bands"]
    index = json.loads((folder / "model_index.json").read_text())
    pipe = SimpleNamespace(config=SimpleNamespace(bands=index["bands"]))
    numbers = np.random.default_rng(0).integers(0, 2500, (6, 8, 4)).astype(np.uint16)
    numbers[0, 0] = 0
    write_geotiff(tmp_path / "a.tif", numbers, None, nodata=0)
    ours = read_pixels(tmp_path / "a.tif", model.bands).values
    np.testing.assert_allclose(TISynthPipeline.scaled(pipe, numbers), ours, atol=1e-4)
    made = torch.rand(1, 4, 6, 8) * 3 - 1.5
    made[0, :, 0, 0] = torch.tensor([-1.2, -1, -1, -1])
    stored = model.bands.stored(made[0].permute(1, 2, 0).numpy())
    assert (TISynthPipeline.numbers(pipe, made)[0] == stored).all()
    with pytest.raises(ValueError, match="must be"):
        TISynthPipeline.scaled(pipe, numbers[..., :3])
    assert index["bands"]["shown"] == [2, 1, 0]
    card = (folder / "README.md").read_text()
    assert "| 2 |  | 0 | 3000 | 1 | 0 |" in card and "uint16, 0 stands for no data" in card and "rasterio" in card


def test_a_card_says_what_was_given_and_leaves_blank_what_was_not(folders, cli, scenes, tmp_path):
    scores = {"options": {"seeds": 5}, "mIoU": 0.5, "classes": {"road": {"IoU": 0.25}}, "note": "x"}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    config, weights = without_a_class_table(tmp_path, scenes / "classes.json")
    words = [config, weights, tmp_path / "out", "--classes", scenes / "classes.json"]
    cli(
        "export_diffusers",
        *words,
        "--license",
        "cc-by-4.0",
        "--scores",
        tmp_path / "scores.json",
        "--precision",
        "fp16",
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "| scores.json | classes.road.IoU | 0.25 |" in card and "seeds" not in card
    assert card.count("*Not stated.*") == 1 and "## Data\n\n*Not stated.*" in card
    assert (
        load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype
        == torch.half
    )
    weights.unlink()
    cli("import_diffusers", tmp_path / "out", tmp_path / "back")
    assert create_model(tmp_path / "back" / "model.yaml").classes == str(tmp_path / "back" / "classes.json")


def stage(**changed):
    """The configuration of a first stage, and its module with random weights."""
    network = {"ch": 24, "in_channels": 3, "out_ch": 3, "z_channels": 4, "ch_mult": [1, 2], "num_res_blocks": 1}
    params = {"ddconfig": network | {"norm_groups": 32}, "embed_dim": 4, **changed}
    return params, nothing_is_zero(AutoencoderKL(**params)).requires_grad_(False)


@pytest.mark.parametrize("changed", [{}, {"linear_path": True}, {"embed_dim": 3}])
def test_first_stages_that_diffusers_cannot_say(changed):
    params, ours = stage(**changed)
    with torch.device("meta"):
        other = exporting.networks.autoencoder(exporting.BandsAutoencoderParams(**params), 1.0)
    other = exporting.take(other, ours.state_dict(), exporting.first_stage_to_published, torch.float32)
    assert type(other).__name__ == "TISynthAutoencoder"
    image = torch.rand(1, 3, 8, 8)
    latent = ours.encode(image).parameters
    torch.testing.assert_close(other.encode(image).latent_dist.parameters, latent)
    mean = latent.chunk(2, dim=1)[0]
    torch.testing.assert_close(other.decode(mean).sample, ours.decode(mean))


def test_a_plain_controlnet_is_diffusers_own():
    config = shrunken_v15()
    params = config.model.params
    del params.ssl_stage_config
    params.only_mid_control = True
    model = nothing_is_zero(create_model(config)).requires_grad_(False)
    parts = exporting.components(model, OmegaConf.to_container(params), torch.float32)
    assert [type(part).__module__.partition(".")[0] for part in parts.values()] == ["diffusers"] * 3 + ["transformers"]
    x, hint, text = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64), torch.randn(1, 7, 16)
    t = torch.tensor([500])
    for only_middle in (True, False):
        model.model.diffusion_model.only_mid_control = only_middle
        pipe = TISynthPipeline(**parts, tokenizer=None, scheduler=None, only_mid_control=only_middle)
        ours = model.apply_model(x, t, Conditions(mask=hint, text=text))
        torch.testing.assert_close(pipe.predict(x, t, text, hint, None), ours, atol=1e-5, rtol=1e-4)


def shrunken_v21():
    """Stable Diffusion 2.1's layout with a plain ControlNet, narrow."""
    config = OmegaConf.load(ROOT / "configs" / "model" / "cldm_v21.yaml")
    params = config.model.params
    for part in ("control_stage_config", "unet_config"):
        params[part].params.update(model_channels=8, norm_groups=8, context_dim=16, num_head_channels=8)
    params.first_stage_config.params.ddconfig.update(ch=8, norm_groups=8)
    params.cond_stage_config.params.text_config = {"width": 16, "heads": 2, "layers": 3, "embed_dim": 8}
    return config


def test_open_clips_text_transformer_becomes_clips(cli, tmp_path):
    config, weights, folder = (tmp_path / name for name in ("v21.yaml", "v21.safetensors", "v21"))
    OmegaConf.save(shrunken_v21(), config)
    torch.manual_seed(0)
    model = nothing_is_zero(create_model(config))
    save_state_dict(model.state_dict(), weights)
    assert "text_encoder: CLIPTextModel of transformers" in cli("export_diffusers", config, weights, folder)
    cli("import_diffusers", folder, tmp_path / "back")
    again = create_model(tmp_path / "back" / "model.yaml", tmp_path / "back" / "model.safetensors")
    texts = [PROMPT, "", "a field " * 60]
    ours, theirs = (one.get_learned_conditioning(texts) for one in (model, again))
    assert ours.std() > 0.1 and (ours - theirs).abs().max() < 1e-5
    before, after = ({k: v for k, v in one.state_dict().items() if "cond_stage" not in k} for one in (model, again))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_cannot_be_exported_is_refused(cli, folders, tmp_path, monkeypatch):
    _, weights, folder = folders["tiny"]
    config = folder.with_suffix(".yaml")
    refused = cli.refused
    assert "is there already" in refused("export_diffusers", config, weights, folder, "--classes", "MBRSC")
    assert "--classes: the mask branch reads hint_encoding palette" in refused(
        "export_diffusers", config, weights, tmp_path / "out"
    )
    (tmp_path / "no.json").write_text('{"a": "b"}')
    words = ["--classes", "MBRSC", "--scores", tmp_path / "no.json"]
    assert "holds no number" in refused("export_diffusers", config, weights, tmp_path / "out", *words)
    each = OmegaConf.load(folders["bands"][2].with_suffix(".yaml"))
    each.model.params.bands.per_image = [2, 98]
    OmegaConf.save(each, tmp_path / "each.yaml")
    words = [tmp_path / "each.yaml", folders["bands"][1], tmp_path / "out", "--classes", "MBRSC"]
    assert "bands.per_image: scales each image by itself" in refused("export_diffusers", *words)
    (tmp_path / "each.yaml").unlink()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.42.0")
    assert "diffusers 0.42.0" in refused("export_diffusers", config, weights, tmp_path / "out", "--classes", "MBRSC")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.json"]


def test_what_is_no_export_is_refused(cli, folders, tmp_path):
    folder, copy = folders["tiny"][2], tmp_path / "copy"

    def refused(index=None, without=()):
        for path in sorted(copy.rglob("*"), reverse=True) if copy.exists() else ():
            path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
        copy.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.name not in without:
                (copy / path.name).symlink_to(path)
        if index is not None:
            (copy / "model_index.json").unlink()
            (copy / "model_index.json").write_text(
                json.dumps({**json.loads((folder / "model_index.json").read_text()), **index})
            )
        return cli.refused("import_diffusers", copy, tmp_path / "back")

    assert "holds no model_index.json" in refused(without=("model_index.json",))
    assert "holds another pipeline (StableDiffusionPipeline)" in refused({"_class_name": "StableDiffusionPipeline"})
    assert "_tisynth_format 2" in refused({"_tisynth_format": 2})
    assert "written by diffusers 0.40.1; 0.41 is read" in refused({"_diffusers_version": "0.40.1"})
    assert "its part unet is missing" in refused(without=("unet",))
    assert "its part reference_branch is missing" in refused(without=("reference_branch",))
    assert "its part tisynth.yaml is missing" in refused(without=("tisynth.yaml",))
    assert "is the folder that is read" in cli.refused("import_diffusers", folder, folder)
    assert not (tmp_path / "back").exists()


def test_a_mask_of_ids_that_are_no_classes_is_refused_by_the_pipeline():
    table = load_class_table("MBRSC")
    pipe = SimpleNamespace(config=SimpleNamespace(hints=exporting.hints_of("onehot", table)))
    ids = np.array([[0, 4, 255]])
    assert torch.equal(TISynthPipeline.encode_mask(pipe, ids)[0], HintEncoder("onehot", table)(ids.astype(np.uint8)))
    with pytest.raises(ValueError, match="0 to 4"):
        TISynthPipeline.encode_mask(pipe, [[0, 5]])
