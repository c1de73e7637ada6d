"""The launch plan of a variant, ``plan.json``: what both halves of the family have to know of it.

A plan is a list of buffers, a list of pipelines and the steps of one run, in order. Everything in it
is fixed when the model is compiled but a few *sizes* with names, such as how many tokens a run has:
sizes of buffers and numbers of workgroups may grow with one of them (:class:`Extent`).
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from aicc.runtime.artifact import TensorSpec
from aicc.targets.launch_plan import Count, Extent, Positive

PLAN_FILE = "plan.json"
VERSION = 2

# Buffers of a model of rows. The host writes the batch's, which has, as u32, how many tokens there are and of how many
# results are wanted, then arrays of Rows.tokens each: position, keys, pages, first, wanted, and every input.
BATCH, PAGE_LIST, LOGITS = "batch", "pages", "logits"
CHOSEN = "chosen"  # for each row of logits the first of the largest, as u32, and that logit's bits
HEADER_WORDS = 4
RUN_SIZES = ("tokens", "wanted")  # the sizes of a run of such a model


class Buffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Memory of the device.

    Attributes:
        name: Another for each.
        bytes: Its length, a multiple of 4; it may grow with a size that is chosen at load, such as ``pages``.
        constant: Where its bytes are in the artifact's weights file; -1 if it is not a constant.
    """

    name: str
    bytes: Extent
    constant: Annotated[int, msgspec.Meta(ge=-1)] = -1


class Pipeline(msgspec.Struct, frozen=True):
    """A kernel: the entry point ``main`` of ``<name>.wgsl``.

    Attributes:
        name: Of its file.
        writes: For each binding of group 0, a storage buffer, whether the kernel writes to it.
    """

    name: str
    writes: tuple[bool, ...]


class Kernel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One way to do a step.

    Attributes:
        pipeline: Number of the pipeline.
        groups: Workgroups in x, y and z. Nothing runs if one is 0.
        most: The step's size that it is for; the first kernel whose ``most`` is no smaller is taken. 0 is any.
    """

    pipeline: Count
    groups: tuple[Extent, Extent, Extent]
    most: Count = 0


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One dispatch.

    Attributes:
        node: The graph's node it comes from, for people.
        buffers: Numbers of the buffers that are bound, in order.
        kernels: By :attr:`Kernel.most`, ascending; one for any size stands last.
        size: Name of the size that chooses the kernel; empty if there is one kernel.
    """

    node: str
    buffers: tuple[Count, ...]
    kernels: tuple[Kernel, ...]
    size: str = ""


class Tensor(msgspec.Struct, frozen=True):
    """An input or output of a model of tensors with fixed sizes: all of a buffer."""

    spec: TensorSpec
    buffer: str


class Rows(msgspec.Struct, frozen=True):
    """What the host has to know of a decoder or an encoder, whose runs have any number of tokens.

    Attributes:
        tokens: Most tokens of a run.
        context: Most tokens of a sequence.
        page: Tokens a page of keys and values holds. An encoder has as many pages as :attr:`tokens` fill.
        vocab: Columns of a decoder's logits; 0 for encoders.
        inputs: Names of an encoder's inputs, in the order they have in the batch's buffer.
        limits: For each input, what its numbers must be below; 0 if they may be any.
        mask: Which input is 0 where a token is hidden; -1 if none is.
        outputs: Names of an encoder's outputs and their columns; see :func:`output_buffer`.
    """

    tokens: Positive
    context: Positive
    page: Positive
    vocab: Count = 0
    inputs: tuple[str, ...] = ()
    limits: tuple[Count, ...] = ()
    mask: int = -1
    outputs: tuple[tuple[str, int], ...] = ()


def output_buffer(number: int) -> str:
    """Name of the buffer of an encoder's output."""
    return f"output{number}"


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a device runs a model.

    Attributes:
        version: :data:`VERSION` of this file's form.
        limits: Limits of WebGPU that the device must reach, by wgpu's names.
        features: Features of WebGPU that the device must have, by wgpu's names.
        buffers: All memory.
        pipelines: All kernels.
        steps: One run.
        rows: Set for decoders and encoders.
        inputs: Of a model of tensors with fixed sizes: what the host writes before a run.
        outputs: Of such a model: what it reads after.
    """

    version: int
    limits: dict[str, int]
    features: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    pipelines: tuple[Pipeline, ...]
    steps: tuple[Step, ...]
    rows: Rows | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
