"""Windows of average pools along one axis: where each starts and ends, what it divides by, and runs of
windows that are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Window:
    """One output position: it reads [start, stop) of the axis and divides by `count`."""

    start: int
    stop: int
    count: int

    @property
    def length(self) -> int:
        """Elements read."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class WindowRun:
    """Neighbouring output positions whose windows are equally long, divide by the same count, and are `step`
    apart.
    """

    windows: tuple[Window, ...]
    step: int

    @property
    def start(self) -> int:
        """First element read."""
        return self.windows[0].start

    @property
    def stop(self) -> int:
        """One behind the last element read."""
        return self.windows[-1].stop


def strided_windows(
    size: int, *, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool
) -> tuple[Window, ...]:
    """Windows of aten.avg_pool along an axis of `size` elements.

    With `include_pad` they lie on the padded axis, [0, size + 2 padding), where padding holds zeros; without,
    on the axis itself. A window that `ceil_mode` lets reach over the end is cut there, and divides by what is
    left (ATen, native/Pool.h and native/cpu/AvgPoolKernel.cpp).
    """
    outputs = (size + 2 * padding - kernel + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding:
        outputs -= 1  # a window that would lie in the trailing padding alone is left out
    low, high = (-padding, size + padding) if include_pad else (0, size)
    windows: list[Window] = []
    for i in range(outputs):
        first = i * stride - padding
        start, stop = max(first, low), min(first + kernel, high)
        windows.append(Window(start=start - low, stop=stop - low, count=stop - start))
    return tuple(windows)


def adaptive_windows(size: int, outputs: int) -> tuple[Window, ...]:
    """Windows of aten.adaptive_avg_pool along an axis of `size` elements: [floor(i size / outputs), ceil((i +
    1) size / outputs)).
    """
    bounds = [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
    return tuple(Window(start=start, stop=stop, count=stop - start) for start, stop in bounds)


def runs(windows: Sequence[Window]) -> tuple[WindowRun, ...]:
    """Cut windows into runs, each as long as can be; step 1 for a single window."""
    found: list[WindowRun] = []
    for window in windows:
        last = found[-1] if found else None
        if last is None or not _continues(last, window):
            found.append(WindowRun(windows=(window,), step=1))
            continue
        found[-1] = WindowRun(windows=(*last.windows, window), step=window.start - last.windows[-1].start)
    return tuple(found)


def _continues(run: WindowRun, window: Window) -> bool:
    last = run.windows[-1]
    step = window.start - last.start
    same = (window.length, window.count) == (last.length, last.count)
    return same and step > 0 and (len(run.windows) == 1 or step == run.step)


def are_whole(windows: Sequence[Window], size: int) -> bool:
    """True where the windows are the elements of the axis, one by one: the pool does nothing along it."""
    return [(window.start, window.stop, window.count) for window in windows] == [
        (i, i + 1, 1) for i in range(size)
    ]
