"""A model as a C library: a chat without Python says what the runtime says."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicc.compiler.library import compile_to_library
from aicc.compiler.pipeline import compile_model
from aicc.compiler.sources import resolve
from aicc.runtime import Artifact, Model, load
from aicc.runtime.errors import UsageError
from aicc.runtime.machine import processor
from aicc.runtime.target import find_target
from aicc.targets.cpu.lowering.library import write_library
from aicc.targets.cpu.lowering.toolchain import MACHINES

sys.path.insert(0, str(Path(__file__).parents[1] / "native"))

from miniatures import make_decoder
from native_build import ISAS, Isa, emulator, zig_environment

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"
COMPILER = [sys.executable, "-m", "ziglang", "cc", "-O2", "-Wall", "-Wextra", "-Werror"]
CPU = find_target("cpu")

pytestmark = pytest.mark.skipif(not CPU.runs_on(processor()), reason=f"{CPU.name} does not run here")


@pytest.fixture(scope="module")
def artifact(cpu_artifact: Artifact) -> Artifact:
    return cpu_artifact


@pytest.fixture(scope="module")
def folder(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "smollm2"
    assert write_library(artifact, path, CPU) == []
    return path


@pytest.fixture(scope="module")
def chat(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat(folder, tmp_path_factory.mktemp("chat") / "chat")


@pytest.fixture(scope="module")
def model(artifact: Artifact):
    with load(artifact.path) as model:
        yield model


@pytest.mark.parametrize("question", ["What is the capital of France?", "Où est la gare ? 12345 🦜", "<|im_end|> x"])
def test_a_chat_in_c_says_what_the_runtime_says(chat: Path, folder: Path, model: Model, question: str):
    said = subprocess.run([chat, folder, "-n", "16", question], check=True, capture_output=True, timeout=300).stdout
    ids = model.chat_ids([{"role": "user", "content": question}])
    assert said.decode(errors="replace") == model.generate(ids, max_tokens=16).text + "\n"


def test_bad_files_and_words_are_named(chat: Path, folder: Path, tmp_path: Path):
    for name in ("tokenizer.bin", "model.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:-4096])
    told = subprocess.run([chat, tmp_path, "x"], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (1, f"chat: {tmp_path}/tokenizer.bin: is no tokenizer\n")
    (tmp_path / "tokenizer.bin").write_bytes((folder / "tokenizer.bin").read_bytes())
    told = subprocess.run([chat, tmp_path, "x"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 1
    assert told.stderr.startswith(f"chat: {tmp_path}/model.bin: ")
    told = subprocess.run([chat, folder, b"\xff"], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (1, "chat: the question: is not UTF-8\n")


def make_chat(folder: Path, program: Path, *options: str) -> Path:
    """The example's program for the library in a folder, by its own Makefile."""
    make = ["make", "-B", f"CC={' '.join([*COMPILER, *options])}", f"MODEL={folder}", f"PROGRAM={program}"]
    subprocess.run(make, cwd=EXAMPLE, check=True, capture_output=True, timeout=600, env=zig_environment())
    return program


def answer(artifact: Artifact, isa: Isa, folder: Path, words: list[str]) -> bytes:
    """What the chat for an instruction set says; under an emulator the program brings its C library."""
    options, emulation = [], []
    if isa.emulator:
        machine = MACHINES[isa.variant].triple.partition("-")[0]
        options, emulation = ["-static", "-target", f"{machine}-linux-musl"], [str(emulator(isa.emulator[0]))]
    write_library(artifact, folder / "library", find_target(f"cpu:{isa.variant}"))
    program = make_chat(folder / "library", folder / "chat", *options)
    command = [*emulation, *isa.emulator[1:], str(program), str(folder / "library"), *words]
    return subprocess.run(command, check=True, capture_output=True, timeout=900).stdout


EMULATED = ["aarch64", "riscv64"]


@pytest.fixture(scope="module")
def small(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model that makes no sense but has a real tokenizer, and that an emulator is quick with."""
    folder = tmp_path_factory.mktemp("small")
    make_decoder("llama", vocab_size=artifact.manifest.llm.vocab_size).save_pretrained(folder / "source")
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copyfile(artifact.file(f"tokenizer/{name}"), folder / "source" / name)
    targets = ",".join(f"cpu:{ISAS[isa].variant}" for isa in ("portable", *EMULATED))
    compile_model(resolve(str(folder / "source")), targets, folder / "small.aicc", measure=False)
    return Artifact.open(folder / "small.aicc")


WORDS = ["-n", "12", "Où est la gare ?"]


@pytest.fixture(scope="module")
def said_here(small: Artifact, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    said = answer(small, ISAS["portable"], tmp_path_factory.mktemp("portable"), WORDS)
    assert len(said) > 12
    return said


@pytest.mark.parametrize("isa", EMULATED)
def test_a_chat_on_another_processor_says_the_same(small: Artifact, said_here: bytes, isa: str, tmp_path: Path):
    if missing := ISAS[isa].missing():
        pytest.skip(missing)
    assert answer(small, ISAS[isa], tmp_path, WORDS) == said_here


@pytest.mark.full
@pytest.mark.parametrize("isa", [name for name, isa in ISAS.items() if isa.emulator])
def test_a_real_model_on_another_processor_says_the_same(chat: Path, folder: Path, isa: str, tmp_path: Path):
    if missing := ISAS[isa].missing():
        pytest.skip(missing)
    words = ["-n", "6", "What is the capital of France?"]
    compile_model(resolve("smollm2-135m"), f"cpu:{ISAS[isa].variant}", tmp_path / "there.aicc", measure=False)
    said = answer(Artifact.open(tmp_path / "there.aicc"), ISAS[isa], tmp_path, words)
    assert said == subprocess.run([chat, folder, *words], check=True, capture_output=True, timeout=300).stdout


def test_the_code_for_a_device_is_small(folder: Path):
    sizes = {name: (folder / name).stat().st_size for name in ("libmodel.so", "libmodel.a")}
    assert max(sizes.values()) <= 300_000, sizes


@pytest.fixture(scope="module")
def encode(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.so"
    command = [*COMPILER, "-std=gnu11", "-fPIC", "-shared", "tokenizer.c", "-o", str(path)]
    subprocess.run(command, cwd=EXAMPLE, check=True, capture_output=True, timeout=300)
    library = ctypes.CDLL(str(path))
    library.tokenizer_encode.restype = ctypes.c_long
    data = ctypes.create_string_buffer((folder / "tokenizer.bin").read_bytes())
    handle = ctypes.create_string_buffer(512)
    assert library.tokenizer_open(handle, data, ctypes.c_size_t(len(data) - 1)) == 0

    def encode(text: str) -> list[int]:
        raw = text.encode()
        ids = (ctypes.c_int64 * (len(raw) + 1))()
        count = library.tokenizer_encode(handle, raw, ctypes.c_size_t(len(raw)), 0, ids, ctypes.c_size_t(len(ids)))
        assert count >= 0
        return list(ids[:count])

    return encode


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'tsl09aAéß你的שلا"), max_size=60))
@settings(deadline=None, max_examples=300)
def test_the_tokenizer_in_c_cuts_as_the_library_does(encode, model: Model, text: str):
    assert encode(text) == model.tokenizer.encode_parts([(text, True)])


def test_a_folder_that_is_no_library_is_left_alone(tmp_path: Path):
    make_decoder("llama").save_pretrained(tmp_path / "source")
    source = resolve(str(tmp_path / "source"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is no library"):
        compile_to_library(source, CPU, tmp_path / "mine")
    with pytest.raises(UsageError, match="no C library"):
        compile_to_library(source, find_target("null"), tmp_path / "new")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mine", "source"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "aicc_model.h").write_text("of an earlier library, which is replaced")
    compile_to_library(source, CPU, tmp_path / "new")
    made = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert made == ["aicc_model.h", "libmodel.a", "libmodel.so", "model.bin"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["mine", "new", "source"]
