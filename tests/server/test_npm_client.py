"""The official JavaScript client, pinned, gets what the Python one gets."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import DEADLINE, NAME

_SOURCE = Path(__file__).parent / "npm"
_BUILT = Path(__file__).parents[2] / "build" / "npm-client"


@pytest.fixture(scope="module")
def script() -> Path:
    """The client's program, installed beside the package it uses, once for each version of that."""
    lock = (_SOURCE / "package-lock.json").read_bytes()
    folder = _BUILT / hashlib.sha256(lock).hexdigest()[:16]
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node or npm is not installed")
    if not (folder / "node_modules" / "openai").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_SOURCE / name, folder)
        install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder)
            pytest.skip(f"npm cannot install the client: {done.stderr.strip().splitlines()[-1:]}")
    return Path(shutil.copy(_SOURCE / "client.mjs", folder))


def test_the_javascript_client_gets_what_the_python_client_gets(script: Path, url: str, client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    expected = client.chat.completions.create(model=NAME, messages=question, temperature=0, max_tokens=12)

    done = subprocess.run(["node", script, url, NAME], capture_output=True, text=True, timeout=DEADLINE)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == [NAME]
    assert found["chat"] == found["streamed"] == expected.choices[0].message.content
    assert expected.usage is not None
    assert found["usage"]["total_tokens"] == expected.usage.total_tokens
    assert found["called"] == found["calledInStream"]
    assert found["called"]["name"] == "get_weather"
    assert json.loads(found["called"]["arguments"])["city"] in ("Paris", "Rome")
    assert found["schema"] in ("yes", "no")
    assert found["response"] == found["responseInStream"] != ""
    assert found["unknownModel"] == {
        "kind": "NotFoundError", "status": 404, "param": "model", "code": "model_not_found"
    }  # fmt: skip
    assert found["unknownField"] == {
        "kind": "BadRequestError", "status": 400, "param": "tokens", "code": "unknown_parameter"
    }  # fmt: skip
    assert found["aborted"] == "text_completion"
