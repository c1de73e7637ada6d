"""The runtime is lean: what it imports, how quickly, and that nothing more is needed to run an artifact."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from aicc.runtime.artifact import Artifact

HEAVY = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "transformers", "optimum", "nncf")
ROOT = Path(__file__).parent.parent
IMPORT_BUDGET_S = 0.150  # over Python with numpy; the best of a few runs, as the machine may be busy


def _run(code: str, *arguments: str, python: str = sys.executable) -> str:
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_runtime_brings_nothing_heavy() -> None:
    found = _run(
        f"import sys, aicc.runtime; print([m for m in {(*HEAVY, 'openvino', 'tokenizers')} if m in sys.modules])"
    )
    assert found.strip() == "[]"


def test_running_an_artifact_never_imports_the_compiler(demo_artifact: Artifact) -> None:
    code = (
        "import sys; from aicc.runtime import load\n"
        "with load(sys.argv[1]) as model: model.generate('The capital of France is', max_tokens=2)\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY} or m.startswith('aicc.compiler')])"
    )
    assert _run(code, str(demo_artifact.path)).strip() == "[]"


def test_importing_the_runtime_is_within_its_budget() -> None:
    code = "import time, numpy; t = time.perf_counter(); import aicc.runtime; print(time.perf_counter() - t)"
    assert min(float(_run(code)) for _ in range(5)) < IMPORT_BUDGET_S


@pytest.fixture(scope="module")
def runtime_python() -> str:
    """A Python that has the runtime with its own dependencies, installed from a wheel, and nothing else."""
    folder = ROOT / "build" / "runtime-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    constraints = str(ROOT / "constraints.txt")
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", constraints]
    subprocess.run([*command, f"{ROOT}[openvino]"], check=True, timeout=600)
    subprocess.run([*command, "--no-deps", "--force-reinstall", str(ROOT)], check=True, timeout=600)
    return str(python)


def test_the_runtimes_own_dependencies_are_enough_to_run_an_artifact(
    runtime_python: str, demo_artifact: Artifact, tmp_path: Path
) -> None:
    code = (
        "import sys; from importlib import util; from aicc.runtime import load\n"
        f"assert not [m for m in {HEAVY} if util.find_spec(m)]\n"
        "with load(sys.argv[1]) as model: print(model.generate('The capital of France is', max_tokens=3).text)"
    )
    assert "Paris" in _run(code, str(demo_artifact.path), python=runtime_python)
    aicc = Path(runtime_python).with_name("aicc")
    page = tmp_path / "page.html"
    done = subprocess.run(
        [aicc, "inspect", str(demo_artifact.path), "--html", str(page)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert page.exists()


def test_a_lean_installation_has_no_problems_for_lacking_the_compiler(runtime_python: str) -> None:
    aicc = Path(runtime_python).with_name("aicc")
    done = subprocess.run([aicc, "doctor", "--json"], capture_output=True, text=True, timeout=300, check=True)
    document = json.loads(done.stdout)
    assert "onnx is not installed." in [device["problem"] for device in document["devices"]]
    assert not [problem for problem in document["problems"] if "not installed" in problem["what"]]
