"""Random views of pictures, a batch at a time on whatever device the pictures are on.

Each picture draws its own parameters from one stream (`training.draws`), so a view is a function of the seed.
The order is that of the papers' code: crop, then jitter and grayscale (NPID for ImageNet: grayscale and jitter),
then blur; the mirror image costs nothing inside the crop. Within the jitter the order is brightness, contrast,
saturation, hue for every picture (torchvision shuffles it).

Shapes: B pictures, (B, 3, H, W), float32 RGB in 0…1 unless said otherwise.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draw
from training.recipes import Augmentation

_LUMA = (0.299, 0.587, 0.114)
_ATTEMPTS = 10  # a crop is drawn anew when it does not fit, this many times (as torchvision does)


def view(images: Tensor, size: int, augmentation: Augmentation, draw: Draw) -> Tensor:
    """Return one random view of each picture.

    Args:
        images: uint8 (B, 3, S, S).
        size: side of the view in pixels.
        augmentation: what may happen, and how strongly.
        draw: the only source of randomness.

    Returns:
        float32 (B, 3, size, size) in 0…1.
    """
    if augmentation.shift:
        flip = draw.uniform() < augmentation.flip
        pixels = shifted(images.float() / 255, augmentation.shift, size, flip, draw)
    else:
        boxes = crop_boxes(augmentation.crop_area, augmentation.crop_ratio, draw)
        angles = (draw.uniform() * 2 - 1) * math.radians(augmentation.rotation)
        flip = draw.uniform() < augmentation.flip
        pixels = crop(images.float() / 255, boxes, size, flip=flip, angles=angles)
    if augmentation.order == "jitter-gray":
        pixels = _grayed(_jittered(pixels, augmentation, draw), augmentation, draw)
    else:
        pixels = _jittered(_grayed(pixels, augmentation, draw), augmentation, draw)
    if augmentation.blur > 0:
        sigmas = 0.1 + (augmentation.blur_sigma - 0.1) * draw.uniform()
        pixels = _where(draw.uniform() < augmentation.blur, blur(pixels, sigmas), pixels)
    return pixels


def _jittered(pixels: Tensor, augmentation: Augmentation, draw: Draw) -> Tensor:
    if augmentation.jitter == 0:
        return pixels
    strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    bright, contrast, vivid = (1 + x * (draw.uniform() * 2 - 1) for x in strengths)
    shift = augmentation.hue * (draw.uniform() * 2 - 1)
    return _where(draw.uniform() < augmentation.jitter, jitter(pixels, bright, contrast, vivid, shift), pixels)


def _grayed(pixels: Tensor, augmentation: Augmentation, draw: Draw) -> Tensor:
    if augmentation.grayscale == 0:
        return pixels
    return _where(draw.uniform() < augmentation.grayscale, luma(pixels).expand_as(pixels), pixels)


def shifted(images: Tensor, shift: int, size: int, flip: Tensor, draw: Draw) -> Tensor:
    """Cut (size, size) out of pictures (B, 3, S, S) padded with `shift` pixels of black, at random places.

    With S = size this is the crop of residual networks on CIFAR: whole pictures, moved by up to `shift` pixels.
    """
    padded = F.pad(images, (shift, shift, shift, shift))
    room = padded.shape[-1] - size + 1
    top, left = (draw.integers(room, 2)).unbind(dim=1)
    steps = torch.arange(size, device=images.device)
    rows = top[:, None] + steps  # (B, size)
    columns = left[:, None] + torch.where(flip[:, None], steps.flip(0), steps)
    pictures = torch.arange(len(images), device=images.device)
    return padded[pictures[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crop_boxes(area: float, ratio: float, draw: Draw) -> Tensor:
    """Draw regions of a square picture: area uniform in [area, 1], log-ratio uniform in ±log(ratio).

    A region that sticks out is drawn anew; after ten attempts the whole picture is taken.

    Returns:
        float32 (B, 4): left, top, width, height as shares of the side.
    """
    share = area + (1 - area) * draw.uniform(_ATTEMPTS)
    aspect = torch.exp(math.log(ratio) * (draw.uniform(_ATTEMPTS) * 2 - 1))
    width, height = (share * aspect).sqrt(), (share / aspect).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.float().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    width = torch.where(found, width.gather(1, first)[:, 0], 1.0)
    height = torch.where(found, height.gather(1, first)[:, 0], 1.0)
    left = (1 - width) * draw.uniform()
    top = (1 - height) * draw.uniform()
    return torch.stack([left, top, width, height], dim=1)


def crop(images: Tensor, boxes: Tensor, size: int, *, flip: Tensor, angles: Tensor) -> Tensor:
    """Cut a region out of each picture and resize it, bilinearly.

    Args:
        images: float (B, 3, S, S).
        boxes: (B, 4) left, top, width, height as shares of the side.
        size: side of the result.
        flip: bool (B,), mirrored left to right.
        angles: (B,) radians by which the region is turned about its centre; the border is repeated outside.

    Returns:
        (B, 3, size, size).
    """
    left, top, width, height = boxes.unbind(dim=1)
    cos, sin = angles.cos(), angles.sin()
    mirror = torch.where(flip, -1.0, 1.0)
    theta = torch.stack(  # affine_grid's coordinates run from -1 to 1 over the picture
        [
            torch.stack([width * cos * mirror, -height * sin, 2 * left + width - 1], dim=1),
            torch.stack([width * sin * mirror, height * cos, 2 * top + height - 1], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Change the colours of each picture: three factors (B,) and a hue shift (B,) as a share of the circle."""
    pixels = (images * _column(brightness)).clamp(0, 1)
    middle = luma(pixels).mean(dim=(2, 3), keepdim=True)
    pixels = torch.lerp(middle, pixels, _column(contrast)).clamp(0, 1)
    pixels = torch.lerp(luma(pixels), pixels, _column(saturation)).clamp(0, 1)
    return shift_hue(pixels, hue)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn each picture's hue by `shift` (B,) of the circle; value and HSV saturation stay.

    The usual way through HSV, without leaving RGB: a hue h ∈ [0, 6) is a point on the hexagon's rim, and a channel
    is value − chroma × clamp(min(k, 4 − k), 0, 1) with k = (n + h) mod 6, n = 5, 3, 1 for R, G, B.
    """
    value, largest = images.max(dim=1)
    chroma = value - images.amin(dim=1)
    red, green, blue = images.unbind(dim=1)
    # Hue from the largest channel and the signed difference of the other two.
    difference = torch.where(largest == 0, green - blue, torch.where(largest == 1, blue - red, red - green))
    hue = 2 * largest + difference / torch.where(chroma > 0, chroma, 1.0) + 6 * shift[:, None, None]
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device)[None, :, None, None]
    k = offsets + hue[:, None]
    k = k - 6 * (k / 6).floor()  # remainder() is four times slower
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each picture by its own Gaussian of standard deviation `sigmas` (B,) pixels, borders reflected."""
    count, channels, height, width = images.shape
    radius = min(math.ceil(3 * float(sigmas.max())), height - 1, width - 1)
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    weights = torch.softmax(-(steps**2)[None] / (2 * sigmas[:, None] ** 2), dim=1)  # (B, 2·radius + 1)
    kernel = weights.repeat_interleave(channels, dim=0)[:, None]
    groups = count * channels
    pixels = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    pixels = pixels.reshape(1, groups, height + 2 * radius, width + 2 * radius)
    pixels = F.conv2d(pixels, kernel[:, :, :, None], groups=groups)
    pixels = F.conv2d(pixels, kernel[:, :, None, :], groups=groups)
    return pixels.reshape(count, channels, height, width)


def luma(images: Tensor) -> Tensor:
    """Return the brightness (B, 1, H, W), ITU-R 601 weights as in Pillow."""
    weights = torch.tensor(_LUMA, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _where(chosen: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    return torch.where(_column(chosen), changed, kept)
