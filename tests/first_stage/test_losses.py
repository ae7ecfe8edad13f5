"""The terms of the loss, against what they are in closed form."""

import math

import pytest
import torch

from common.errors import InputError
from ldm.first_stage.losses import (
    PatchDiscriminator,
    adaptive_weight,
    gradient_loss,
    hinge,
    kl_divergence,
    perceptual_loss,
)
from ldm.modules.vae import DiagonalGaussian


def test_kl_is_the_divergence_of_two_normal_distributions():
    mean, std = 0.7, 0.3
    parameters = torch.cat([torch.full((2, 4, 3, 3), mean), torch.full((2, 4, 3, 3), 2 * math.log(std))], dim=1)
    one = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), torch.distributions.Normal(0.0, 1.0))
    assert kl_divergence(DiagonalGaussian(parameters), values=432).item() == pytest.approx(36 * one.item() / 432)
    assert kl_divergence(DiagonalGaussian(torch.zeros(1, 8, 3, 3)), values=1) == 0


def test_gradient_loss_does_not_see_brightness_and_counts_a_slope_once_a_scale():
    real = torch.rand(1, 3, 16, 16)
    assert gradient_loss(real + 0.3, real, 3).item() == pytest.approx(0, abs=1e-6)
    slope = 0.1 * torch.arange(16.0).expand(1, 3, 16, 16)  # along the rows alone
    # at full scale 0.1 a pixel, at half 0.2, at a quarter 0.4; nothing down the columns
    assert gradient_loss(real + slope, real, 3).item() == pytest.approx((0.1 + 0.2 + 0.4) / 6, rel=1e-4)


def test_hinge_is_content_beyond_one():
    assert hinge(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -7.0])) == 0
    assert hinge(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx(0.5 * (1 + 1.5))


def test_the_adversary_weighs_as_much_as_the_reconstruction():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    found = adaptive_weight((2 * weight).sum(), (0.5 * weight).sum(), weight)
    assert found.item() == pytest.approx(4, rel=1e-3) and not found.requires_grad
    assert adaptive_weight(weight.sum(), 0 * weight.sum(), weight).item() == pytest.approx(1e4)  # and no more


def test_each_network_hears_its_own_loss_alone():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(3, channels=8, layers=2)
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert torch.equal(discriminator.frozen(image), discriminator(image))
    discriminator.frozen(image).sum().backward()
    assert image.grad is not None and all(p.grad is None for p in discriminator.parameters())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_discriminator_sees_the_smallest_image_that_it_names(layers):
    discriminator = PatchDiscriminator(3, 8, layers)
    size = discriminator.smallest
    assert discriminator(torch.zeros(1, 3, size, size)).numel() >= 1
    with pytest.raises((RuntimeError, ValueError)):
        discriminator(torch.zeros(1, 3, size // 2, size // 2))


def test_lpips_takes_a_vgg_of_the_users_own(tmp_path):
    from torchvision.models import vgg

    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"])
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    network = perceptual_loss(tmp_path / "vgg.pth", bands=3)
    assert torch.equal(network.net.state_dict()["slice2.5.weight"], state["features.5.weight"])
    image = torch.rand(1, 3, 32, 32)
    assert network(image, image).item() == 0 and network(image, 1 - image).item() > 0
    with pytest.raises(InputError, match="looks at 3 bands, the images have 4"):
        perceptual_loss(tmp_path / "vgg.pth", bands=4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"no VGG-16 .*lacks features.28.weight"):
        perceptual_loss(tmp_path / "other.pth", bands=3)
