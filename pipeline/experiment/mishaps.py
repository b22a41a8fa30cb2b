"""What can befall a cell while it is sampled: memory ends, which smaller batches mend, or values are not finite."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction

log = logging.getLogger(__name__)

SHORTAGE = ("DefaultCPUAllocator: can't allocate", "std::bad_alloc", "_ALLOC_FAILED", "could not create a primitive")
"""What torch, cuBLAS, cuDNN and oneDNN say in a RuntimeError when memory does not suffice."""


class CellError(Exception):
    """A cell cannot be finished, and nothing of it is written; the message is for the user.

    No UserError, which would end the stage: its other cells can be finished.
    """


class NotFiniteError(ArithmeticError):
    """Infinities, or what is no number, where there should be pictures.

    Attributes:
        rows: which of the pictures.
        count: of how many.
    """

    def __init__(self, message: str, x: Tensor) -> None:
        super().__init__(message)
        self.rows = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        self.count = len(x)


class Finite:
    """A denoiser whose estimates are finite, or refused."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule, self.shape = inner.schedule, inner.shape

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Ask the denoiser within.

        Raises:
            NotFiniteError: it was given, or gave, something else than finite numbers.
        """
        prediction = self.inner.denoise(x_t, t)
        if not prediction.x_0.isfinite().all():
            culprit = "the network's estimate of" if x_t.isfinite().all() else "what the method makes of"
            raise NotFiniteError(f"{culprit} {{}} is not finite at t = {t} of {self.schedule.T}", prediction.x_0)
        return prediction


def in_batches(count: int, size: int, work: Callable[[range], None], name: str) -> list[int]:
    """Let `work` have the numbers 0 to `count` - 1 in order, `size` at a time, and half as many where memory ends.

    Args:
        count: how many there are.
        size: of the first batch, and of those after it.
        work: does a whole batch, or raises and has done nothing.
        name: what is worked on, for people.

    Returns:
        The sizes of the batches.

    Raises:
        CellError: memory does not suffice for a batch of one.
    """
    done, sizes = 0, list[int]()
    while done < count:
        batch = range(done, min(done + size, count))
        try:
            work(batch)
        except Exception as error:
            if not is_shortage(error):
                raise
            if len(batch) == 1:
                raise CellError(
                    f"{name}: not even one at a time fits into memory ({_first_line(error)}); free memory or "
                    "use a device with more of it, or lower image_size, the network's channels or the method's "
                    "particles in params.yaml."
                ) from error
            size = len(batch) // 2
            log.warning("%s: out of memory with a batch of %d, going on with %d.", name, len(batch), size)
        else:
            done += len(batch)
            sizes.append(len(batch))
    return sizes


def is_shortage(error: Exception) -> bool:
    """Tell whether memory did not suffice, on whatever device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SHORTAGE)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
