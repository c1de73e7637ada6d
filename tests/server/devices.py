"""Devices that fail when they are told to, over a real one."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aicc.runtime.server.listener as listener
from aicc.runtime.generator import Model
from aicc.runtime.provider import DecoderExecutable, TokenBatch

DEADLINE = 60.0  # seconds until a halted device goes on in any case
BREAK, KILL, HALT, GO_ON = signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN, signal.SIGRTMIN + 1


class Killed(BaseException):
    """What no handler of exceptions expects."""


class Device:
    """An executable with switches that break it, kill who runs it, and halt it.

    Attributes:
        page_count: May be set to fewer than there are.
        broken: Whether every step fails.
        breaks: Numbers of steps that fail, from 0.
        killed: Whether the next step ends its thread.
        running: Clear it to halt the next step, before it fails or computes.
        halted: Set once a step waits.
        steps: How many there were.
    """

    def __init__(self, executable: DecoderExecutable) -> None:
        self._executable = executable
        self.page_count = executable.page_count
        self.broken = self.killed = False
        self.breaks: set[int] = set()
        self.running = threading.Event()
        self.running.set()
        self.halted = threading.Event()
        self.steps = 0

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        step, self.steps = self.steps, self.steps + 1
        if not self.running.is_set():
            self.halted.set()
            assert self.running.wait(DEADLINE)
        if self.killed:
            raise Killed
        if self.broken or step in self.breaks:
            raise RuntimeError("the device at /dev/secret is gone")
        return self._executable.forward(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executable, name)


def obey_signals() -> None:
    """Have `serve` in this process run its models on devices that fail: one step at BREAK, for good at KILL.

    They halt at HALT, and go on at GO_ON.
    """
    load, devices = listener.load, list[Device]()

    def load_on_device(*arguments: Any) -> Any:
        model = load(*arguments)
        assert isinstance(model, Model)
        device = Device(model._executable)
        devices.append(device)
        model._executable = model.engine._executable = device  # type: ignore[assignment]
        return model

    def fail(number: int, frame: FrameType | None) -> None:
        for device in devices:
            device.breaks.add(device.steps)
            device.killed = number == KILL

    def halt(number: int, frame: FrameType | None) -> None:
        for device in devices:
            device.running.clear() if number == HALT else device.running.set()
        print("halted" if number == HALT else "going on", file=sys.stderr, flush=True)

    listener.load = load_on_device
    for number in (HALT, GO_ON):
        signal.signal(number, halt)
    for number in (BREAK, KILL):
        signal.signal(number, fail)
