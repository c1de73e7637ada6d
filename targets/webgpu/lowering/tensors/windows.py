"""Windows that slide over images: what convolutions and poolings have in common, pooling, and resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import floor

import numpy as np

from aicc.targets.webgpu.lowering.tensors.builder import Builder
from aicc.targets.webgpu.lowering.tensors.movement import axes_of
from aicc.targets.webgpu.lowering.tensors.pointwise import FLOATS, Attributes, known, only
from aicc.targets.webgpu.lowering.tensors.values import Kernel, Place, Refused, Root, Shape, Store, Value


@dataclass(frozen=True)
class Window:
    """A window and where it stands.

    Attributes:
        kernel: Its sizes.
        strides: From one place to the next.
        dilations: Between its elements.
        before: Elements of padding before the image.
        sizes: How many places there are.
        image: Sizes of the image.
        after: Elements of padding after the image.
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    sizes: Shape
    image: Shape
    after: Shape = ()

    @classmethod
    def of(cls, a: Attributes, image: Sequence[int], kernel: Sequence[int]) -> Window:
        """What the attributes of a convolution or a pooling say."""
        rank = len(kernel)
        strides, dilations = (tuple(a.get_ints(name, [1] * rank)) for name in ("strides", "dilations"))
        pads, mode = list(a.get_ints("pads", [0] * 2 * rank)), a.get_string("auto_pad", "NOTSET")
        if min(strides) < 1 or min(dilations) < 1:
            raise Refused("its strides or dilations are below 1")
        before, after, sizes = [], [], []
        for d, (size, width) in enumerate(zip(image, kernel, strict=True)):
            span, step = (width - 1) * dilations[d] + 1, strides[d]
            first, last = (0, 0) if mode == "VALID" else (pads[d], pads[d + rank])
            if mode.startswith("SAME"):
                total = max((-(-size // step) - 1) * step + span - size, 0)
                first, last = total // 2, total - total // 2
                first, last = (first, last) if mode == "SAME_UPPER" else (last, first)
            free = size + first + last - span
            count = free // step + 1
            if a.get_int("ceil_mode", 0) and free % step and count * step < size + first:  # begins before the padding
                count += 1
            if count < 1:
                raise Refused("its window is larger than the image")
            before.append(first)
            after.append(last)
            sizes.append(count)
        shapes = (tuple(kernel), strides, dilations, tuple(before), tuple(sizes), tuple(image), tuple(after))
        return cls(*shapes)

    def origin(self, kernel: Kernel, coords: Sequence[str]) -> list[str]:
        """Where the first element of a window is in the image."""
        found = []
        for coord, step, before in zip(coords, self.strides, self.before, strict=True):
            moved = coord if step == 1 else f"{coord} * {step}"
            found.append(kernel.let(f"{moved} - {before}" if before else moved))
        return found

    @contextmanager
    def loops(self, kernel: Kernel) -> Iterator[list[str]]:
        """Over the elements of a window; gives their coordinates in it."""
        with ExitStack() as stack:
            yield [stack.enter_context(kernel.loop(f"w{d}", size)) for d, size in enumerate(self.kernel)]

    def reach(self, kernel: Kernel, origin: Sequence[str], offsets: Sequence[str]) -> tuple[list[str], str]:
        """An element's coordinates in the image, and the condition that it is one; empty if it always is."""
        coords, inside = [], []
        for d, (first, offset) in enumerate(zip(origin, offsets, strict=True)):
            step = self.dilations[d]
            moved = offset if step == 1 else f"{offset} * {step}"
            coords.append(first if offset == "0" else kernel.let(f"{first} + {moved}"))
            furthest = (self.sizes[d] - 1) * self.strides[d] - self.before[d] + (self.kernel[d] - 1) * step
            inside += [f"{coords[-1]} >= 0"] if self.before[d] else []
            inside += [f"{coords[-1]} < {self.image[d]}"] if furthest >= self.image[d] else []
        return coords, kernel.let(" && ".join(inside)) if inside else ""


class Pooling(Root):
    """The largest of each window, its sum, or its mean."""

    def __init__(self, x: Value, window: Window, kind: str, padding_counts: bool = False) -> None:
        self.x, self.window, self.kind, self.padding_counts = x, window, kind, padding_counts
        super().__init__((*x.shape[:2], *window.sizes), x.dtype, x)

    def write(self, kernel: Kernel, store: Store) -> None:
        """One window."""
        window, image = self.window, self.x.shape[2:]
        place = Place(kernel, self.shape, number=kernel.threads(self.size))
        n, c, *coords = place.coords()
        origin = window.origin(kernel, coords)
        lowest = "-3.4028234e38f" if self.x.scalar == "f32" else f"{self.x.scalar}(-2147483648)"
        total = kernel.var(lowest if self.kind == "max" else "0.0")
        with window.loops(kernel) as offsets:
            places, inside = window.reach(kernel, origin, offsets)
            with kernel.block(f"if ({inside or 'true'})"):
                value = self.x.at(kernel, Place(kernel, self.x.shape, [n, c, *places]))
                kernel.line(f"{total} = max({total}, {value});" if self.kind == "max" else f"{total} += {value};")
        if self.kind == "mean":
            low = [f"-{before}" if self.padding_counts else "0" for before in window.before]
            high = [
                size + after if self.padding_counts else size for size, after in zip(image, window.after, strict=True)
            ]
            counts = [
                kernel.let(_counted(first, least, most, width, step))
                for first, least, most, width, step in zip(
                    origin, low, high, window.kernel, window.dilations, strict=True
                )
            ]
            kernel.line(f"{total} = {total} / f32({' * '.join(counts)});")
        kernel.given[self] = total
        store(place)


def _counted(first: str, least: str, most: int, width: int, step: int) -> str:
    """How many of ``first``, ``first + step``, … (``width`` of them) are in ``[least, most)``."""
    skipped = f"(max({least} - {first}, 0) + {step - 1}) / {step}"
    return f"min({width}, ({most} - {first} + {step - 1}) / {step}) - {skipped}"


def _max_pool(b: Builder, a: Attributes, x: Value) -> Value:
    x = b.fetched(x)
    return Pooling(x, Window.of(a, x.shape[2:], a["kernel_shape"].as_ints()), "max")


def _average_pool(b: Builder, a: Attributes, x: Value) -> Value:
    only(FLOATS, x)
    x = b.fetched(x)
    window = Window.of(a, x.shape[2:], a["kernel_shape"].as_ints())
    return Pooling(x, window, "mean", bool(a.get_int("count_include_pad", 0)))


class Resampling(Root):
    """Each result is a weighted sum of a few elements along each axis: ``taps[axis]`` are their places and weights."""

    def __init__(self, x: Value, taps: dict[int, tuple[Value, Value]], shape: Shape) -> None:
        self.x, self.taps = x, taps
        super().__init__(shape, x.dtype, x, *(value for pair in taps.values() for value in pair))

    def write(self, kernel: Kernel, store: Store) -> None:
        """One sum."""
        place = Place(kernel, self.shape, number=kernel.threads(self.size))
        coords = list(place.coords())
        total = kernel.var("0.0")
        with ExitStack() as stack:
            factors = []
            for axis, (places, weights) in self.taps.items():
                tap = stack.enter_context(kernel.loop(f"t{axis}", places.shape[1]))
                where = Place(kernel, places.shape, [place.coords()[axis], tap])
                coords[axis] = places.at(kernel, where)
                factors.append(weights.at(kernel, where))
            value = self.x.at(kernel, Place(kernel, self.x.shape, coords))
            kernel.line(f"{total} += {' * '.join([value, *factors])};")
        kernel.given[self] = total
        store(place)


def _resize(
    b: Builder, a: Attributes, x: Value, roi: Value | None = None, scales: Value | None = None,
    sizes: Value | None = None,
) -> Value:  # fmt: skip
    if scales is None and sizes is None and known(roi) is not None:
        scales = roi  # opset 10: no region of interest
    if a.get_int("antialias", 0) or a.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("it keeps the aspect ratio or filters before it makes an image smaller")
    axes = axes_of(a, None) or list(range(len(x.shape)))
    given = known(sizes) if sizes is not None and sizes.size else known(scales)
    if given is None:
        raise Refused("its sizes are known only when it runs")
    shape, factors = list(x.shape), {}
    for axis, number in zip(axes, given.reshape(-1), strict=True):
        if sizes is not None and sizes.size:
            shape[axis], factors[axis] = int(number), int(number) / x.shape[axis]
        else:
            shape[axis], factors[axis] = floor(x.shape[axis] * number), float(np.float32(number))
    moved = [axis for axis in factors if shape[axis] != x.shape[axis] or factors[axis] != 1]
    x = b.fetched(x)
    taps = {axis: _taps(a, x.shape[axis], shape[axis], factors[axis]) for axis in moved}
    stored = {axis: (b.constant(p, None), b.constant(w, None)) for axis, (p, w) in taps.items()}
    if all(places.shape[1] == 1 for places, _ in stored.values()):

        def at(kernel: Kernel, place: Place) -> str:
            coords = list(place.coords())
            for axis, (places, _) in stored.items():
                coords[axis] = places.at(kernel, Place(kernel, places.shape, [coords[axis], "0"]))
            return x.at(kernel, Place(kernel, x.shape, coords))

        return b.map(tuple(shape), x.dtype, at, x, *(places for places, _ in stored.values()))
    only(FLOATS, x)
    return Resampling(x, stored, tuple(shape))


def _taps(a: Attributes, size: int, made: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The elements that each result is made of along an axis.

    Returns:
        Their places int32 ``[made, taps]``, and weights float32 of the same shape.
    """
    place = np.arange(made, dtype=np.float64)
    mode = a.get_string("coordinate_transformation_mode", "half_pixel")
    length = scale * size  # of the result before it was rounded
    at = {
        "half_pixel": lambda: (place + 0.5) / scale - 0.5,
        "half_pixel_symmetric": lambda: size / 2 * (1 - made / length) + (place + 0.5) / scale - 0.5,
        "pytorch_half_pixel": lambda: (place + 0.5) / scale - 0.5 if made > 1 else place * 0,
        "align_corners": lambda: place * (size - 1) / (length - 1) if made > 1 else place * 0,
        "asymmetric": lambda: place / scale,
    }
    if mode not in at:
        raise Refused(f"its coordinates are {mode}")
    exact, kind = at[mode](), a.get_string("mode", "nearest")
    if kind == "nearest":
        rounded = {
            "round_prefer_floor": lambda: np.ceil(exact - 0.5),
            "round_prefer_ceil": lambda: np.floor(exact + 0.5),
            "floor": lambda: np.floor(exact),
            "ceil": lambda: np.ceil(exact),
        }[a.get_string("nearest_mode", "round_prefer_floor")]()
        return rounded.clip(0, size - 1).astype(np.int32)[:, None], np.ones((made, 1), np.float32)
    low = np.floor(exact)
    rest = exact - low
    if kind == "linear":
        places, weights = low[:, None] + [0, 1], np.stack([1 - rest, rest], 1)
    else:
        c = a.get_float("cubic_coeff_a", -0.75)
        near, far = (
            lambda t: (c + 2) * t**3 - (c + 3) * t**2 + 1,
            lambda t: c * t**3 - 5 * c * t**2 + 8 * c * t - 4 * c,
        )
        places = low[:, None] + [-1, 0, 1, 2]
        weights = np.stack([far(1 + rest), near(rest), near(1 - rest), far(2 - rest)], 1)
    if a.get_int("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= size), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return places.clip(0, size - 1).astype(np.int32), weights.astype(np.float32)


OPERATORS: dict[str, Callable[..., Value]] = {
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _resize,
}
