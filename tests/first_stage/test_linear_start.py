"""The linear path starts as the projection on principal components, which is known in closed form."""

import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from ldm.first_stage.linear_start import band_weights, start_from_components
from ldm.models.autoencoder import AutoencoderKL


def network(bands, channels):
    sizes = {"ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16}
    ddconfig = {**sizes, "in_channels": bands, "out_ch": bands, "z_channels": channels, "norm_groups": 4}
    return AutoencoderKL({**ddconfig, "attn_type": "none"}, channels, linear_path=True)


@pytest.mark.parametrize("bands", [3, 5])
def test_it_loses_what_the_other_components_hold(bands):
    torch.manual_seed(0)
    images = torch.tanh(F.interpolate(torch.randn(32, bands, 8, 8), scale_factor=2.0, mode="bilinear"))
    stage = network(bands, 6)
    held = start_from_components(stage, images)
    posterior = stage.encode(images)
    latent = posterior.mode()
    values = latent.transpose(0, 1).flatten(1)  # (C, N)
    torch.testing.assert_close(torch.cov(values), torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.mean(1), torch.zeros(6), atol=1e-4, rtol=0)
    assert posterior.std.unique().item() == pytest.approx(0.05, abs=0.001)

    def weighted(pictures):
        seen = torch.einsum("cd,ndhw->nchw", band_weights(images).float(), pictures)
        return F.pixel_unshuffle(seen, 2).transpose(0, 1).flatten(1)

    lost = weighted(stage.decode(latent) - images)
    spectrum = torch.linalg.eigvalsh(torch.cov(weighted(images)))
    assert held == pytest.approx((spectrum[-6:].sum() / spectrum.sum()).item(), abs=1e-5)
    assert lost.var(dim=1).sum().item() == pytest.approx(spectrum[:-6].sum().item(), rel=1e-3)


def test_pixels_without_data_have_no_say():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    valid = torch.ones(5, 1, 8, 8, dtype=torch.bool)
    valid[4] = False
    starts = [network(3, 2), network(3, 2)]
    held = [
        start_from_components(starts[0], images),
        start_from_components(starts[1], torch.cat([images, -torch.ones(1, 3, 8, 8)]), valid),
    ]
    assert held[0] == pytest.approx(held[1])
    torch.testing.assert_close(starts[0].analysis.weight, starts[1].analysis.weight)
    torch.testing.assert_close(starts[0].analysis.bias, starts[1].analysis.bias)


def test_bands_are_weighted_to_the_root_of_their_deviations():
    torch.manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(3, 3)).Q
    deviations = torch.tensor([1.0, 0.1, 0.01])
    images = torch.einsum("cd,ndhw->nchw", mixed, torch.randn(64, 3, 16, 16) * deviations[:, None, None])
    expected = mixed @ torch.diag(deviations**-0.5) @ mixed.T
    torch.testing.assert_close(band_weights(images).float(), expected, rtol=0.05, atol=0.05)


def test_more_channels_than_directions_are_refused():
    images = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1)  # gray: a block varies in 4 directions
    with pytest.raises(InputError, match=r"embed_dim 6: .* vary in 4 directions alone"):
        start_from_components(network(3, 6), images)


def test_published_first_stages_have_none():
    assert not any(
        "analysis" in name or "synthesis" in name
        for name in AutoencoderKL(
            {
                "ch": 32,
                "ch_mult": [1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "resolution": 16,
                "in_channels": 3,
                "out_ch": 3,
                "z_channels": 4,
            },
            4,
        ).state_dict()
    )
