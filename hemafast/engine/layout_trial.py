"""Compare gradients of convolutions in channels_last with those in the contiguous layout; run by `layout.py`.

A kernel that writes past its buffer returns wrong gradients, or hangs, or ends the process. So this file runs in a
process of its own, which ends at the first convolution that is wrong: memory may be damaged by then.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

BEGUN, RIGHT, WRONG = "begun", "right", "wrong"
_IMAGES = 4
_LONGEST = 5  # seconds of each core for one convolution, which takes milliseconds; beyond, its threads spin
_PATIENCE = 12  # seconds by the clock: threads may also sleep while they wait for one that never comes
_MOST = {"fp32": 1e-3, "bf16": 5e-2}  # of the largest value; sums in another order differ by 1e-6 in fp32, 1e-2 in bf16
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def difference(numbers: Sequence[int], dtype: torch.dtype) -> float:
    """How far output and gradients in channels_last are from those in the contiguous layout.

    `numbers` are those of a `layout.Convolution`. The difference is the largest one, as a share of the largest value.
    """
    inputs, outputs, height, width, groups, *pairs = numbers
    kernel, stride, padding, dilation = (tuple(pairs[start : start + 2]) for start in range(0, 8, 2))
    draw = torch.Generator().manual_seed(0)
    images = torch.randn((_IMAGES, inputs, height, width), generator=draw).to(dtype)
    weight = torch.randn((outputs, inputs // groups, *kernel), generator=draw).to(dtype)

    def computed(layout: torch.memory_format) -> tuple[Tensor, ...]:
        seen, taps = (tensor.clone(memory_format=layout).requires_grad_() for tensor in (images, weight))
        found = functional.conv2d(seen, taps, None, stride, padding, dilation, groups)
        slopes = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        return found.detach(), *torch.autograd.grad(found, (seen, taps), slopes.contiguous(memory_format=layout))

    pairs_of = zip(computed(torch.contiguous_format), computed(torch.channels_last), strict=True)
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs_of)


def main(threads: int, precision: str) -> None:
    """Print that it begins, and for each convolution of standard input whether it is right, up to one that is not."""
    torch.set_num_threads(threads)
    print(BEGUN, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, _LONGEST * threads)  # ends the process, wherever it is
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        right = difference([*map(int, line.split())], _DTYPES[precision]) <= _MOST[precision]
        print(RIGHT if right else WRONG, flush=True)
        if not right:
            break
    os._exit(0)  # what is left in damaged memory is not tidied up


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
