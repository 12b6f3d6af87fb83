"""Compiled weight gradients of depthwise convolutions on a CPU, where oneDNN is slow at them.

Without AVX-512, oneDNN multiplies matrices, one channel at a time. With AVX-512, it has a kernel that is fast at 3 x 3
taps, and takes two to eight times as long as ours at 5 x 5 and more (benchmarks/depthwise.py). Forward passes and the
gradients of inputs stay with oneDNN, which is fast at them.

numba and torch share the same OpenMP threads, so they do not compete for the cores.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from hemafast.compiled import compiled, told
from hemafast.engine.machine import Machine
from hemafast.light_timm import Conv2dSame, pad_same

Floats = npt.NDArray[np.float32]

_LEAST_CHANNELS = 40  # with 32 channels it is as fast as oneDNN, with 16 three times slower
_LEAST_TAPS_AVX512 = 5  # along a side
_CHANNELS = 128  # per block: the sums for 5 x 5 taps take 13 KB and stay in the first-level cache
_IMAGES = 8  # summed by one thread; fixed, so that a sum does not depend on the number of threads


def use_own_gradients(model: nn.Module, machine: Machine) -> int:
    """Let the depthwise convolutions of `model` that learn use the gradients of this module, if `machine` asks for it.

    Parameters and their names stay the same. Returns the number of changed convolutions.
    """
    if not machine.own_gradients:
        return 0
    changed = [module for module in model.modules() if type(module) in _OWN and _is_ours(cast(nn.Conv2d, module))]
    if changed:
        _start_threads()
    for module in changed:
        module.__class__ = _OWN[type(module)]  # in place, so that other references to the module see it too
    return len(changed)


@cache
def _start_threads() -> None:
    """Compile, and start the threads of numba. That sets torch's number of threads to all cores, so restore it.

    numba would take threads of TBB where the system has that library.
    """
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]
    threads, nothing = torch.get_num_threads(), np.zeros((1, 1, 1, 1), np.float32)
    with told("gradients of depthwise convolutions"):
        _sum_up(nothing, nothing, nothing.copy(), 1, 0, 0)
    torch.set_num_threads(threads)


def weight_gradient(images: Tensor, gradient: Tensor, kernel: int, stride: int, padding: tuple[int, int]) -> Tensor:
    """Gradient of the weights (channels, 1, kernel, kernel) of a depthwise convolution, fp32.

    `images` (n, channels, height, width) are its input, `gradient` (n, channels, rows, columns) is the gradient of its
    output, and `padding` is (top, left). The result is the same to the bit with any number of threads.
    """
    _start_threads()
    pixels, slopes = (
        tensor.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy()
        for tensor in (images, gradient)
    )
    channels = pixels.shape[3]
    sums = np.empty((-(-len(pixels) // _IMAGES), kernel, kernel, channels), np.float32)
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    _sum_up(pixels, slopes, sums, stride, *padding)
    return torch.from_numpy(sums).sum(dim=0).permute(2, 0, 1).unsqueeze(1)


@compiled(parallel=True, fastmath=True, error_model="numpy")
def _sum_up(pixels: Floats, slopes: Floats, sums: Floats, stride: int, top: int, left: int) -> None:
    """Fill `sums` (groups of images, taps, taps, channels), one group of images and one block of channels at a time.

    Four images are added at once, so that each sum is loaded and stored a quarter as often.
    """
    height, width, channels = pixels.shape[1:]
    rows, columns, kernel = slopes.shape[1], slopes.shape[2], sums.shape[1]
    blocks = (channels + _CHANNELS - 1) // _CHANNELS
    for task in numba.prange(len(sums) * blocks):
        part = np.zeros((kernel, kernel, _CHANNELS), np.float32)
        group, block = task // blocks, task % blocks
        here = slice(block * _CHANNELS, min((block + 1) * _CHANNELS, channels))
        first, last = group * _IMAGES, min((group + 1) * _IMAGES, len(pixels))
        fours = first + (last - first) // 4 * 4
        for row in range(rows):
            for down in range(max(0, top - row * stride), min(kernel, height + top - row * stride)):
                y = row * stride - top + down
                for column in range(columns):
                    start = column * stride - left
                    taps = range(max(0, -start), min(kernel, width - start))
                    for image in range(first, fours, 4):
                        slope0, slope1 = slopes[image, row, column, here], slopes[image + 1, row, column, here]
                        slope2, slope3 = slopes[image + 2, row, column, here], slopes[image + 3, row, column, here]
                        for right in taps:
                            x, total = start + right, part[down, right]
                            pixel0, pixel1 = pixels[image, y, x, here], pixels[image + 1, y, x, here]
                            pixel2, pixel3 = pixels[image + 2, y, x, here], pixels[image + 3, y, x, here]
                            for channel in range(len(slope0)):
                                total[channel] += (
                                    pixel0[channel] * slope0[channel]
                                    + pixel1[channel] * slope1[channel]
                                    + pixel2[channel] * slope2[channel]
                                    + pixel3[channel] * slope3[channel]
                                )
                    for image in range(fours, last):
                        slope = slopes[image, row, column, here]
                        for right in taps:
                            pixel, total = pixels[image, y, start + right, here], part[down, right]
                            for channel in range(len(slope)):
                                total[channel] += pixel[channel] * slope[channel]
        for down in range(kernel):
            for right in range(kernel):
                sums[group, down, right, here] = part[down, right, : here.stop - here.start]


class _Convolution(torch.autograd.Function):
    """A depthwise convolution with `weight_gradient` as the gradient of its weights."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_images, _, _ = torch.ops.aten.convolution_backward(
                *(gradient, images, weight, None, [ctx.stride] * 2, ctx.padding, [1, 1], False, [0, 0], len(weight)),
                (True, False, False),
            )
        if ctx.needs_input_grad[1]:
            of_weight = weight_gradient(images, gradient, weight.shape[2], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=(0, 2, 3))
        return of_images, of_weight, of_bias, None, None


def _convolve(images: Tensor, module: nn.Conv2d, padding: tuple[int, int]) -> Tensor:
    convolved = _Convolution.apply(images, module.weight, module.bias, module.stride[0], padding)
    return cast(Tensor, convolved)


class _Depthwise(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return _convolve(input, self, cast(tuple[int, int], self.padding))


class _DepthwiseSame(Conv2dSame):  # type: ignore[misc] # timm is not annotated
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(pad_same(x, self.kernel_size, self.stride), self, (0, 0))


_OWN: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: _Depthwise, Conv2dSame: _DepthwiseSame}


def _least_taps() -> int:
    """Of a kernel along a side, from which on ours is faster than oneDNN's on this processor."""
    return _LEAST_TAPS_AVX512 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 2


def _is_ours(module: nn.Conv2d) -> bool:
    """Whether it is depthwise, large enough, learns, and has only the options of `_Convolution`."""
    return (
        module.groups == module.in_channels == module.out_channels >= _LEAST_CHANNELS
        and module.weight.requires_grad
        and len({*module.kernel_size}) == len({*module.stride}) == 1
        and module.kernel_size[0] >= _least_taps()
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
