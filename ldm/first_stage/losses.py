"""What a first stage is trained by: reconstruction, Kullback-Leibler divergence, perceptual and adversarial terms.

The sum is that of Rombach et al. 2022, appendix G, after Esser et al. 2021 (VQGAN). All terms are means over an image's
values, so that their weights do not depend on its size.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from common.weights import read_tensors
from ldm.modules.layers import group_norm
from ldm.modules.vae import DiagonalGaussian


def kl_divergence(posterior: DiagonalGaussian, values: int, known: Tensor | None = None) -> Tensor:
    """KL(q(z|x) || N(0, 1)) in nats, summed over an image's latent, divided by the image's number of values; scalar.

    Kingma & Welling 2014, appendix B.

    Args:
        posterior: of latents (B, C, h, w).
        values: of an image.
        known: 1 for latent pixels that count, else 0 (B, 1, h, w); None for all.
    """
    variance = posterior.std.float().square()
    nats = 0.5 * (posterior.mean.float().square() + variance - 1 - variance.log())
    counted = nats if known is None else nats * known
    return counted.flatten(1).sum(1).mean() / values


def gradient_loss(made: Tensor, real: Tensor, scales: int) -> Tensor:
    """Mean absolute difference of the images' gradients, at full, half, quarter, ... resolution; scalar.

    Mathieu et al. 2016, equation 6, with several resolutions: what is blurred has lost its gradients.

    Args:
        made: (B, bands, H, W).
        real: (B, bands, H, W).
        scales: number of resolutions; ends earlier where a side would be one pixel.
    """
    difference = (made - real).float()
    terms = []
    for _ in range(scales):
        terms += [difference.diff(dim=axis).abs().mean() for axis in (2, 3)]
        if min(difference.shape[2:]) < 4:
            break
        difference = F.avg_pool2d(difference, 2)
    return torch.stack(terms).mean()


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): real patches above 1, made ones below -1; scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Esser et al. 2021, equation 7: the ratio of both terms' gradients at the decoder's last layer; scalar.

    Args:
        reconstruction: scalar.
        adversarial: scalar.
        last_layer: weights that both depend on.
    """
    of_image, of_adversary = (
        torch.autograd.grad(term, last_layer, retain_graph=True)[0].norm() for term in (reconstruction, adversarial)
    )
    return (of_image / (of_adversary + 1e-4)).clamp(0, 1e4).detach()


class PatchDiscriminator(nn.Module):
    """Tells for overlapping patches whether they are real (Isola et al. 2017, section 3.2).

    Args:
        bands: of the images.
        channels: of the first layer; they double with each layer, up to eightfold.
        layers: convolutions of stride 2; with 3, a patch has 70 pixels.
    """

    def __init__(self, bands: int, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(bands, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            blocks += [
                nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False),
                group_norm(after),  # no batch statistics: small batches, and real and made images apart
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """(B, bands, H, W) -> one logit a patch (B, 1, H', W')."""
        return self.main(image)

    def frozen(self, image: Tensor) -> Tensor:
        """The same, with gradients for the image alone."""
        weights = {name: weight.detach() for name, weight in self.named_parameters()}
        return torch.func.functional_call(self, weights, image)

    @property
    def smallest(self) -> int:
        """The smallest image, in pixels, of which it sees a patch."""
        strided = sum(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in self.main)
        return 3 * 2**strided  # the two last convolutions take a pixel each


def perceptual_loss(weights: Path, bands: int) -> nn.Module:
    """LPIPS (Zhang et al. 2018) on VGG-16; its linear layers are torchmetrics' own, nothing is fetched.

    Args:
        weights: VGG-16 trained on ImageNet, as torchvision or timm name it (``features.0.weight``, ...).
        bands: of the images.

    Returns:
        (made, real), both (B, 3, H, W) in [-1, 1] -> (B, 1, 1, 1).

    Raises:
        InputError: not such a file, or images without three bands.
    """
    from torchmetrics.functional.image.lpips import _LPIPS

    if bands != 3:
        raise InputError(
            f"loss.perceptual_weights {weights}: LPIPS looks at 3 bands, the images have {bands}; leave it out"
        )
    state = read_tensors(weights)
    if "features.28.weight" not in state:
        raise InputError(
            f"loss.perceptual_weights {weights}: no VGG-16 of torchvision or timm (lacks features.28.weight)"
        )
    network = _LPIPS(net="vgg", pnet_rand=True)
    own = network.net.state_dict()  # slice2.5.weight is features.5.weight
    wanted = {name: f"features.{name.partition('.')[2]}" for name in own}
    for name, given in wanted.items():
        if given not in state or state[given].shape != own[name].shape:
            raise InputError(f"loss.perceptual_weights {weights}: no VGG-16 of torchvision or timm ({given})")
    network.net.load_state_dict({name: state[given] for name, given in wanted.items()})
    return network.eval().requires_grad_(False)
