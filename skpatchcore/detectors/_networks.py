"""Small convolutional networks of the detectors that reconstruct images: encoder, decoder, discriminator."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

# Each level halves the height and the width.
N_LEVELS = 4
# Sides of images must be multiples of this number of pixels.
MULTIPLE = 2**N_LEVELS
# Side and standard deviation of the Gaussian window of SSIM, and its constants for images in [0, 1], as in the paper.
_WINDOW, _SIGMA, _C1, _C2 = 11, 1.5, 0.01**2, 0.03**2


def encoder(size: tuple[int, int], width: int, latent: int) -> nn.Sequential:
    """Return a network from images of shape (n, 3, height, width) to vectors of shape (n, latent)."""
    channels = [3, *(width * 2 ** min(i, 2) for i in range(N_LEVELS))]
    layers: list[nn.Module] = []
    for i in range(N_LEVELS):
        layers += [nn.Conv2d(channels[i], channels[i + 1], 4, 2, 1), nn.LeakyReLU(0.2)]
    rows, columns = size[0] // MULTIPLE, size[1] // MULTIPLE
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * rows * columns, latent))


def decoder(size: tuple[int, int], width: int, latent: int) -> nn.Sequential:
    """Return a network from vectors of shape (n, latent) to images of shape (n, 3, height, width) in (0, 1)."""
    channels = [*(width * 2 ** min(i, 2) for i in reversed(range(N_LEVELS))), 3]
    rows, columns = size[0] // MULTIPLE, size[1] // MULTIPLE
    layers: list[nn.Module] = [
        nn.Linear(latent, channels[0] * rows * columns),
        nn.Unflatten(1, (channels[0], rows, columns)),
    ]
    for i in range(N_LEVELS):
        layers += [nn.LeakyReLU(0.2), nn.ConvTranspose2d(channels[i], channels[i + 1], 4, 2, 1)]
    return nn.Sequential(*layers, nn.Sigmoid())


class Autoencoder(nn.Module):
    """A convolutional autoencoder with a sigmoid at its output.

    Parameters
    ----------
    size : (int, int)
        Height and width of the images, multiples of 16 pixels.
    width : int
        Number of channels of the first level; the second has twice as many, and the others four times.
    latent : int
        Number of values between encoder and decoder.
    """

    def __init__(self, size: tuple[int, int], width: int, latent: int):
        super().__init__()
        self.encoder, self.decoder = encoder(size, width, latent), decoder(size, width, latent)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images."""
        made: torch.Tensor = self.decoder(self.encoder(images))
        return made


class Adversaries(nn.Module):
    """An autoencoder as generator, and a discriminator of images and reconstructions.

    Parameters
    ----------
    size, width, latent
        As for :class:`Autoencoder`.
    """

    def __init__(self, size: tuple[int, int], width: int, latent: int):
        super().__init__()
        self.generator = Autoencoder(size, width, latent)
        *layers, last = encoder(size, width, 1)
        self.features, self.decision = nn.Sequential(*layers), last

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images."""
        made: torch.Tensor = self.generator(images)
        return made


def squared_errors(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of the colours of each pixel, of shape (n, height, width)."""
    return (images - reconstructions).square().mean(1)


def ssim_errors(images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Return 1 minus the structural similarity (SSIM) around each pixel, of shape (n, height, width).

    The similarity is the mean over the colours. At the edges, the images are mirrored.

    References
    ----------
    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 13, 2004. Bergmann et al., "Improving unsupervised defect segmentation by applying
    structural similarity to autoencoders", VISAPP 2019.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        return _blurred(values)

    x, y = mean(images), mean(reconstructions)
    xx, yy, xy = mean(images * images) - x * x, mean(reconstructions**2) - y * y, mean(images * reconstructions) - x * y
    similarity = ((2 * x * y + _C1) * (2 * xy + _C2)) / ((x * x + y * y + _C1) * (xx + yy + _C2))
    return 1 - similarity.mean(1)


def _blurred(values: torch.Tensor) -> torch.Tensor:
    """Return images after a Gaussian filter of 11 x 11 pixels."""
    n_channels, half = values.shape[1], _WINDOW // 2
    places = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - half
    window = torch.exp(-places.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).expand(n_channels, 1, 1, _WINDOW)
    padded = functional.pad(values, (half, half, half, half), mode="reflect")
    across = functional.conv2d(padded, window, groups=n_channels)
    return functional.conv2d(across, window.transpose(2, 3), groups=n_channels)
