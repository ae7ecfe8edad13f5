"""Distillation: its functions in closed form, what a student learns, and the run that ends in a model of four steps."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import LCMScheduler
from omegaconf import OmegaConf
from PIL import Image

from cldm.build import create_model, load_config
from cldm.conditions import Conditions
from cldm.guidance import ConditionGuidance
from ldm.checkpoint import save_state_dict
from ldm.models.consistency import boundary, consistency, ddim_step, skipped_steps
from ldm.models.schedule import make_betas, schedule_buffers, with_zero_terminal_snr
from tests.conftest import SMALL, small_model
from tests.training.test_training import weights

KINDS = [("eps", False), ("v", False), ("v", True), ("x0", True)]  # what is predicted, and whether all ends in noise


def alphas(zero_terminal_snr):
    betas = make_betas(1000, 0.00085, 0.012)
    return schedule_buffers(with_zero_terminal_snr(betas) if zero_terminal_snr else betas)["alphas_cumprod"].double()


def spread(abar, sigma):
    """Of noisy latents, where clean ones are normal with standard deviation ``sigma``."""
    return (abar * sigma**2 + 1 - abar).sqrt()


def prediction_of(x_0, x_t, abar, parameterization):
    eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
    return {"eps": eps, "x0": x_0, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x_0}[parameterization]


def exact(x_t, abar, parameterization, sigma):
    """What a perfect network predicts of such data: the mean of x_0 given x_t, or what follows from it."""
    return prediction_of(abar.sqrt() * sigma**2 / spread(abar, sigma) ** 2 * x_t, x_t, abar, parameterization)


def test_the_boundary_is_the_one_that_the_sampler_has():
    t = torch.tensor([0, 1, 19, 499, 999])
    c_skip, c_out = boundary(t)
    known = [LCMScheduler().get_scalings_for_boundary_condition_discrete(int(step)) for step in t]
    torch.testing.assert_close(torch.cat([c_skip, c_out], 1)[:, :, 0, 0], torch.tensor(known))
    x, prediction = torch.randn(2, 5, 3, 4, 4)
    for parameterization, zero in KINDS:
        abar = alphas(zero).float()[torch.zeros_like(t)][:, None, None, None]
        assert torch.equal(consistency(prediction, x, torch.zeros_like(t), abar, parameterization), x)
    later, before = skipped_steps(torch.tensor([0, 19, 20, 500, 999]), 20, 1000)
    assert later.tolist() == [19, 19, 39, 519, 999] and before.tolist() == [0, 0, 19, 499, 979]
    assert skipped_steps(torch.tensor([1000]), 20, 1001)[0].item() == 999


@pytest.mark.parametrize(("parameterization", "zero"), KINDS)
def test_steps_of_a_perfect_teacher_lead_along_the_known_path(parameterization, zero):
    table, x_T = alphas(zero), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    for sigma, within in ((1.0, 0.03), (0.5, 0.06), (2.0, 0.03)):
        x, t = x_T * spread(table[999], sigma), torch.tensor(999)
        while t > 0:
            before = (t - 20).clamp(min=0)
            abar, abar_before = table[t], table[before]
            there = ddim_step(exact(x, abar, parameterization, sigma), x, abar, abar_before, parameterization)
            if sigma == 1:  # a turn by the angle between both time steps
                turn = (abar * abar_before).sqrt() + ((1 - abar) * (1 - abar_before)).sqrt()
                torch.testing.assert_close(there, turn * x)
            x, t = there, before
        # by the probability flow an image keeps its place in the distribution; fifty steps come near
        torch.testing.assert_close(x, x_T * spread(table[0], sigma), rtol=within, atol=0)


# ---- the loss


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The teacher's checkpoint: none of its weights are zero."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_state_dict(small_model(0.1).state_dict(), path)
    return path


def student_of(start, **distillation):
    config = load_config(SMALL)
    config.model.target = "cldm.distillation.student.ConsistencyStudent"
    config.model.params.update(classes="MBRSC", use_ema=True, ema_decay=0.95)
    config.model.params.distillation = {"teacher": str(start), "teacher_hash": "0" * 16, "scale": [1.0], **distillation}
    student = create_model(config, start)
    student.learn_from(create_model(SMALL, start, classes="MBRSC"))
    return student.train()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    cond = Conditions(mask=torch.rand(4, 3, 32, 32), reference=torch.randn(4, 48, 8, 8), text=torch.randn(4, 77, 16))
    return {"x_start": torch.randn(4, 48, 8, 8), "cond": cond, "t": torch.tensor([5, 310, 620, 999])}


def test_the_known_consistency_function_has_no_loss(start, batch, monkeypatch):
    student, sigma = student_of(start), 0.5
    batch["x_start"] *= sigma

    def perfect(x_t, t, cond):
        return exact(x_t, student.alphas_cumprod[t][:, None, None, None], student.parameterization, sigma)

    def known(x_t, t, cond):
        abar, (c_skip, c_out) = student.alphas_cumprod[t][:, None, None, None], boundary(t)
        at_once = spread(student.alphas_cumprod[0], sigma) / spread(abar, sigma) * x_t
        return prediction_of((at_once - c_skip * x_t) / c_out.clamp(min=1e-9), x_t, abar, student.parameterization)

    monkeypatch.setattr(student.teacher, "apply_model", perfect)
    for parameterization, zero in KINDS:
        monkeypatch.setattr(student, "parameterization", parameterization)
        monkeypatch.setattr(student, "alphas_cumprod", alphas(zero).float())
        losses = {}
        for name, network in (("teacher", perfect), ("known", known)):
            monkeypatch.setattr(student, "apply_model", network)
            losses[name] = student.p_losses(**batch, noise=torch.randn(4, 48, 8, 8))
        assert (losses["known"][1:] < 0.1 * losses["teacher"][1:]).all(), (parameterization, losses)


def test_a_student_learns_by_all_weights_that_train(start, batch):
    student = student_of(start, mask_scale=2.0)
    student.setup("fit")
    before = {name: value.clone() for name, value in student.teacher.state_dict().items()}
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([p for _, p in trained], 1e-3)
    losses = []
    for step in range(6):
        # in bfloat16 once: autocast must not take the averages for the weights
        with torch.autocast("cpu", torch.bfloat16, enabled=step == 0):
            loss = student.p_losses(**batch, noise=torch.ones(4, 48, 8, 8), scale=2.0).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for _, p in trained)
        optimizer.step()
        student.model_ema.update()
        losses.append(loss.item())
    assert losses[-1] < 0.96 * losses[1], losses
    assert all(torch.equal(value, before[name]) for name, value in student.teacher.state_dict().items())
    assert not any("teacher" in name for name in student.state_dict())


def test_each_image_has_its_own_guidance_scale(start, batch):
    student = student_of(start, scale=[1.5, 3.0], mask_scale=2.0, guidance_rescale=0.7)
    drawn = student.further_draws([1, 2, 3, 4])["scale"]
    assert drawn.shape == (4, 1, 1, 1) and 1.5 <= drawn.min() < drawn.max() <= 3
    assert torch.equal(student.further_draws([3])["scale"], drawn[2:3])
    cond, x, t = replace(batch["cond"], remember=False), batch["x_start"], batch["t"]
    with torch.no_grad():
        together = student._guidance(cond, drawn)(x, t)
        for i in range(4):
            scale = drawn[i].item()
            without, how = student.without_text(cond), {"mask_scale": 2.0, "rescale": 0.7}
            alone = ConditionGuidance(student.teacher, cond, without, scale, **how)
            torch.testing.assert_close(together[i], alone(x, t)[i], rtol=1e-4, atol=1e-4)


# ---- the command


def words(scenes, folder, name, start, *more):
    lists = ["--data-root", scenes, "--train-txt-file", scenes / "train_set_items.json"]
    lists += ["--val-txt-file", scenes / "test_set_items.json", f"model.params.classes={scenes}/classes.json"]
    return ["--teacher", start, "--base", SMALL, "-n", name, "-l", folder, "--gpus", "cpu", *lists, *more]


def test_a_run_goes_on_exactly_and_paints_in_four_steps(cli, scenes, tmp_path, start):
    start = shutil.copy(start, tmp_path / "teacher.safetensors")
    images = "lightning.callbacks.image_logger.params.batch_frequency=2"
    shared = ["--scale", "1.5", "2", "--learning-rate", "1e-3", images]
    out = cli("distill", *words(scenes, tmp_path, "whole", start, *shared, "--max-steps", "2"))
    run = tmp_path / "whole"
    assert "trained 2 steps" in out and f"from {start}" in out
    assert Image.open(run / "images" / "step_000002.png").size == (4 * 32 + 3 * 4, 2 * 32 + 4)
    said = OmegaConf.load(run / "config.yaml").model.params
    assert said.distillation.teacher == str(start) and said.distillation.scale == [1.5, 2.0]
    assert said.learning_rate == 1e-3 and said.trainable == "all" and said.decay_steps is None

    cli("distill", *words(scenes, tmp_path, "parts", start, *shared, "--max-steps", "1"))
    parts = tmp_path / "parts"
    cli("distill", "--resume", parts, "--gpus", "cpu", "--max-steps", "2")
    state, resumed = weights(run), weights(parts)
    assert state.keys() == resumed.keys() and all(torch.equal(state[key], resumed[key]) for key in state)
    assert int(state["model_ema.num_updates"]) == 2

    item = json.loads((scenes / "inference_set_items.json").read_text().splitlines()[0])
    (tmp_path / "one.json").write_text(json.dumps(item) + "\n")
    model = ["--config", run / "config.yaml", "--ckpt", run / "checkpoints" / "last.ckpt", "--data-root", scenes]
    paint = [*model, "--txt-file", tmp_path / "one.json", "--gpus", "cpu", "--num-workers", 0, "--steps", 4]
    out = cli("inference", *paint, "--outdir", tmp_path / "out", "--sampler", "lcm", "--scale", 1)
    assert "distilled" not in out
    record = json.loads((tmp_path / "out" / "samples.jsonl").read_text())
    assert (record["sampler"], record["steps"], record["scale"]) == ("lcm", 4, 1.0)
    within = "this model was distilled with guidance within (text 1.5 to 2, mask 1, reference 1); take --scale 1"
    out = cli("inference", *paint, "--outdir", tmp_path / "other", "--sampler", "lcm", "--scale", 1.5, "--dry-run")
    assert f"--scale 1.5: {within}" in out

    start.write_bytes(b"other")
    assert "is not the teacher that this distillation began with" in cli.refused("distill", "--resume", parts)
    start.unlink()
    assert "model.params.distillation.teacher=FILE" in cli.refused("distill", "--resume", parts)


def test_lora_layers_learn_in_the_place_of_the_weights(cli, scenes, tmp_path, start):
    told = cli("distill", *words(scenes, tmp_path, "lora", start, "--scale", "1", "--lora", 2, "--max-steps", "1"))
    assert "trained 1 steps" in told
    state = weights(tmp_path / "lora")
    assert any(key.endswith("lora_B.default.weight") and value.any() for key, value in state.items())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--scale", "3", "2"], "--scale 3 2: write one number, or two of which the first is smaller"),
        (["--skip", "15"], "distillation: skip: 15: must divide 20"),
        (["--huber-c", "0"], "--huber-c: 0: "),
        (["--use-ema"], "has no EMA weights"),
        (["--teacher", "nowhere.ckpt"], "nowhere.ckpt"),
        (["model.params.use_ema=false"], "a student's target network is its running average"),
        (["model.params.distillation.scale=[2,1]"], "scale: 2 to 1: write the smaller one first"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(cli, scenes, tmp_path, start, more, told):
    assert told in cli.refused("distill", *words(scenes, tmp_path, "run", start, *more))
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_needed(cli):
    assert "--teacher is needed: " in cli.refused("distill", "--base", SMALL)
