"""Channels that weigh by what they change: the images stay, the standard deviations are those asked for."""

import pytest
import torch

from ldm.first_stage.spectrum import channel_gains, factors_of, rescale_channels
from ldm.models.autoencoder import AutoencoderKL


@pytest.mark.parametrize("linear_path", [True, False])
@torch.no_grad()
def test_images_stay_and_channels_are_scaled(linear_path):
    torch.manual_seed(0)
    ddconfig = {"in_channels": 3, "out_ch": 3, "z_channels": 4, "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1}
    first_stage = AutoencoderKL({**ddconfig, "norm_groups": 1, "attn_type": "none"}, 4, linear_path=linear_path).eval()
    images = torch.randn(6, 3, 16, 16)
    before = first_stage.encode(images)
    made = first_stage.decode(before.mode())
    std = before.mode().transpose(0, 1).flatten(1).std(1)
    gains = channel_gains(first_stage, before.mode())
    rescale_channels(first_stage, factors_of(gains, std, 0.5))
    after = first_stage.encode(images)
    new_std = after.mode().transpose(0, 1).flatten(1).std(1)
    assert torch.allclose(first_stage.decode(after.mode()), made, atol=1e-4)
    assert torch.allclose(new_std / gains.sqrt(), (new_std / gains.sqrt()).mean().expand(4), rtol=1e-3)
    assert new_std.square().mean().item() == pytest.approx(1, rel=1e-3)
    assert torch.allclose(after.std / before.std, (new_std / std)[None, :, None, None].expand_as(after.std), rtol=1e-3)


def test_factors():
    gains, std = torch.tensor([0.4, 0.1]), torch.tensor([2.0, 1.0])
    assert torch.allclose(factors_of(gains, std, 0.0) * std, torch.ones(2))  # whitened
    scaled = factors_of(gains, std, 1.0) * std
    assert torch.allclose(scaled[0] / scaled[1], torch.tensor(4.0)) and torch.allclose(
        scaled.square().mean(), torch.tensor(1.0)
    )


@torch.no_grad()
def test_the_gain_of_a_linear_channel_is_its_kernels():
    class Linear:
        def decode(self, latents):
            return latents * torch.tensor([3.0, 0.5])[None, :, None, None]

    latents = torch.randn(4, 2, 8, 8)
    std = latents.transpose(0, 1).flatten(1).std(1)
    expected = std * torch.tensor([3.0, 0.5]) / 2**0.5  # one of two channels moves
    assert torch.allclose(channel_gains(Linear(), latents), expected, rtol=1e-4)
