"""LangChain's integration tests of chat models, against a live server; in an environment of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from environments import environment
from live_server import listening

from aicc.runtime import load
from aicc.runtime.artifact import Artifact
from aicc.runtime.server import create_app

_SOURCE = Path(__file__).parent / "langchain_client"

# Images, PDFs and audio, in messages and from functions, which models of text do not take.
NOT_APPLICABLE = 5


@pytest.fixture(scope="module")
def url(cpu_artifact: Artifact) -> Iterator[str]:
    """One model by two names."""
    with (
        load(cpu_artifact.path) as one,
        load(cpu_artifact.path) as other,
        listening(create_app({"smollm2": one, "other": other})) as url,
    ):
        yield url


@pytest.mark.full
def test_langchain_finds_a_chat_model(url: str, tmp_path: Path) -> None:
    shutil.copy(_SOURCE / "chat_model.py", tmp_path / "test_chat_model.py")
    variables = os.environ | {
        "AICC_TEST_SERVER": f"{url}/v1",
        "AICC_TEST_MODEL": "smollm2",
        "AICC_TEST_OTHER_MODEL": "other",
    }
    loops = [f"asyncio_default_{what}_loop_scope=session" for what in ("test", "fixture")]
    options = [word for option in ("asyncio_mode=auto", *loops) for word in ("-o", option)]
    python = environment(_SOURCE / "requirements.txt")
    recording = "--record-mode=once"  # one test records what the server says first
    command = [python, "-m", "pytest", "-q", "--junitxml=report.xml", recording, *options, "test_chat_model.py"]

    subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True)

    cases = list(ElementTree.parse(tmp_path / "report.xml").iter("testcase"))
    failed = {str(case.get("name")) for case in cases if any(part.tag in ("failure", "error") for part in case)}
    skipped = [case for case in cases if any(part.tag == "skipped" for part in case)]
    assert failed == set()
    assert len(skipped) <= NOT_APPLICABLE
    assert len(cases) >= 50
