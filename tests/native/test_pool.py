"""The pool: every task once, and no step before the one before it is done."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_build import build
from native_model import address

SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
MOST_TASKS = 65535  # AICC_MAX_TASKS


@pytest.fixture(scope="module")
def pool() -> ctypes.CDLL:
    return ctypes.CDLL(str(build(Path(__file__).with_name("pool.c"), "portable")))


@SETTINGS
@given(st.integers(1, 9), st.lists(st.integers(0, 40), max_size=30), st.integers(1, 40))
@example(3, [MOST_TASKS, 2, MOST_TASKS], 2)
def test_every_task_runs_once_a_round_and_after_the_step_before(pool, threads, tasks, rounds):
    counts = np.array([*tasks, 0], np.uint32)
    first = np.array([0, *itertools.accumulate(tasks)], np.uint32)
    done = np.zeros(max(1, sum(tasks)), np.uint32)
    early = pool.pool_run(threads, address(counts), address(first), len(tasks), rounds, address(done))
    assert early == 0
    assert (done[: sum(tasks)] == rounds).all()


def test_threads_that_had_nothing_to_do_for_long_get_their_tasks():
    library = build(Path(__file__).with_name("pool.c"), "portable")
    run = f"import ctypes; print(ctypes.CDLL({str(library)!r}).pool_wrap(4))"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, timeout=60)  # it would not end
    assert done.stdout == f"{2 * (32 * 2 + 4)}\n", done.stderr
