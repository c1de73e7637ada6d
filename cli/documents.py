"""Objects that ``--json`` prints; ``docs/cli.md`` is generated from them.

``bench``, ``check``, ``compile``, ``eval`` and ``inspect`` print what the modules that make it define;
``cli/reference.py`` lists all of them.

Sizes are bytes, times seconds, rates per second. Text fields are empty when there is nothing to
say; fields that can be unknown say ``null``.
"""

from __future__ import annotations

import msgspec


class TargetInfo(msgspec.Struct):
    """One target.

    Attributes:
        name: ``family:variant``.
        description: What it is.
        compiles: Whether this machine can compile for it.
        compiles_reason: Why not, if not.
        runs: Whether this machine can run what was compiled for it.
        runs_reason: Why not, if not.
        evidence: ``runs``, ``emulated``, ``compiled`` or ``prepared``: what has been shown of it in tests.
        device: The provider's name of its device.
        extra: The pip extra it needs.
    """

    name: str
    description: str
    compiles: bool
    compiles_reason: str
    runs: bool
    runs_reason: str
    evidence: str
    device: str
    extra: str


class TargetsDocument(msgspec.Struct):
    """What ``aicc targets --json`` prints.

    Attributes:
        targets: Every target of this installation, or of the family asked for; a family's first is its default.
    """

    targets: list[TargetInfo]


class ProcessorInfo(msgspec.Struct):
    """The processor.

    Attributes:
        model: Its trade name.
        architecture: ``x86_64``, ``aarch64``, …
        instruction_sets: Those that matter for matrix arithmetic.
        cores: Logical processors of the machine.
        usable_cores: Those left by affinity and the container's quota.
    """

    model: str
    architecture: str
    instruction_sets: list[str]
    cores: int
    usable_cores: int


class DeviceInfo(msgspec.Struct):
    """A device of a target family, or why the family has none.

    Attributes:
        family: The target family.
        name: The provider's name for the device.
        description: What the device is.
        target: The family's best target for this device that this machine can run.
        problem: Why the family's devices cannot be listed.
        remedy: What to do about it.
    """

    family: str
    name: str = ""
    description: str = ""
    target: str = ""
    problem: str = ""
    remedy: str = ""


class PackageInfo(msgspec.Struct):
    """A package aicc uses.

    Attributes:
        name: Its name on the package index.
        installed: The version here, empty if it is not installed.
        requirement: The versions aicc needs.
        extra: The extra that brings it; empty if everything needs it.
    """

    name: str
    installed: str
    requirement: str
    extra: str


class CacheEntry(msgspec.Struct):
    """A part of the cache.

    Attributes:
        name: Folder or file inside the cache.
        bytes: Its size.
    """

    name: str
    bytes: int


class CacheInfo(msgspec.Struct):
    """Where aicc keeps what it can fetch or make again.

    Attributes:
        path: The folder.
        disk_free: Bytes free on its disk.
        entries: What is in it.
    """

    path: str
    disk_free: int
    entries: list[CacheEntry]


class Problem(msgspec.Struct):
    """Something wrong.

    Attributes:
        what: The problem.
        remedy: What to do about it.
    """

    what: str
    remedy: str


class DoctorDocument(msgspec.Struct):
    """What ``aicc doctor --json`` prints.

    Attributes:
        aicc: Version of aicc.
        python: Version of Python.
        python_path: The interpreter.
        system: Operating system and its release.
        processor: The processor.
        memory_total: Memory this process may use in all; containers count.
        memory_available: Memory still free for it.
        devices: Devices of each target family.
        packages: What aicc needs, and the versions here.
        cache: The cache and its disk.
        problems: What is wrong; empty if nothing is.
    """

    aicc: str
    python: str
    python_path: str
    system: str
    processor: ProcessorInfo
    memory_total: int
    memory_available: int
    devices: list[DeviceInfo]
    packages: list[PackageInfo]
    cache: CacheInfo
    problems: list[Problem]


class Usage(msgspec.Struct):
    """Tokens of one generation.

    Attributes:
        prompt_tokens: Tokens of the prompt, chat template included.
        completion_tokens: Tokens generated, an end-of-sequence token included.
        total_tokens: Both.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RunTimings(msgspec.Struct):
    """Time of one generation.

    Attributes:
        load_s: Seconds to load the artifact.
        prefill_s: Seconds until the first token was chosen.
        decode_s: Seconds for the tokens after the first.
        prefill_tokens_per_s: Prompt tokens a second.
        decode_tokens_per_s: Tokens a second after the first.
    """

    load_s: float
    prefill_s: float
    decode_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class RunDocument(msgspec.Struct):
    """What ``aicc run --json`` prints for a language model.

    Attributes:
        text: The answer, without the stop string or end-of-sequence token that ended it.
        token_ids: Every generated token, an end-of-sequence token included.
        finish_reason: ``stop`` (end-of-sequence token or stop string) or ``length``.
        usage: Tokens.
        timings: Seconds and rates.
        device: Where it ran, as the device calls itself.
        target: What the variant that ran was compiled for.
        chat_template: Whether the prompt went through the model's chat template.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: Usage
    timings: RunTimings
    device: str
    target: str
    chat_template: bool


class OutputInfo(msgspec.Struct):
    """One output of a model of tensors.

    Attributes:
        name: The model's name for it.
        dtype: Number type, as numpy calls it.
        shape: Sizes.
        file: The file it was written to; empty without ``--output-dir``.
    """

    name: str
    dtype: str
    shape: list[int]
    file: str


class RunTensorsDocument(msgspec.Struct):
    """What ``aicc run --json`` prints for a model of tensors.

    Attributes:
        outputs: The outputs, in the signature's order.
        load_s: Seconds to load the artifact.
        run_s: Seconds to run it once.
        device: Where it ran, as the device calls itself.
        target: What the variant that ran was compiled for.
    """

    outputs: list[OutputInfo]
    load_s: float
    run_s: float
    device: str
    target: str
