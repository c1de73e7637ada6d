"""Several targets in one artifact: one set of weights, and the best variant that the machine can run."""

import json
import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from aicc.compiler.check import check_model
from aicc.compiler.graph_file import load_graph
from aicc.compiler.importers import Source
from aicc.compiler.pipeline import compile_model
from aicc.runtime import Artifact, Model, load
from aicc.runtime.artifact import GRAPH_PATH, WEIGHTS_PATH
from aicc.runtime.errors import AiccError, MismatchError, UnsupportedError, UsageError
from aicc.runtime.machine import processor
from aicc.runtime.manifest import encode_manifest
from aicc.runtime.target import all_targets, find_target, find_targets
from aicc.targets.cpu.lowering.toolchain import compile_library

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from aicc_command import run_aicc
from miniatures import make_decoder

ASKED = "cpu:portable,cpu:avx512-vnni, cpu:x86-64-v3"
BEST_FIRST = ("cpu:avx512-vnni", "cpu:x86-64-v3", "cpu:portable")
PORTABLE = find_target("cpu:portable")
RUNNABLE = [name for name in BEST_FIRST if all_targets()[name].runs_on(processor())]

pytestmark = pytest.mark.skipif(len(RUNNABLE) < 2, reason="needs a processor that runs two of the variants")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    make_decoder("llama").save_pretrained(folder)
    return Source(folder, "huggingface", "miniature")


@pytest.fixture(scope="module")
def several(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "several.aicc"
    report = compile_model(source, ASKED, path, quant="int8")
    assert report.target == ", ".join(BEST_FIRST)
    return path


def _requiring(artifact: Path, output: Path, wanting: list[str]) -> Path:
    """A copy whose variants for some targets ask for an instruction that no processor has."""
    shutil.copytree(artifact, output)
    manifest = Artifact.open(artifact).manifest
    variants = tuple(
        msgspec.structs.replace(v, requires=v.requires | {"instruction_sets": "avx4096"}) if v.target in wanting else v
        for v in manifest.variants
    )
    Path(output, "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, variants=variants)))
    return output


def test_variants_stand_best_first_each_in_its_folder_over_the_weights_of_one(
    several: Path, source: Source, tmp_path: Path
) -> None:
    compile_model(source, "cpu:x86-64-v3", tmp_path / "one.aicc", quant="int8")
    assert tuple(variant.target for variant in Artifact.open(several).manifest.variants) == BEST_FIRST
    assert len({path.read_bytes() for path in several.glob("variants/*/libmodel.so")}) == len(BEST_FIRST)
    assert (several / WEIGHTS_PATH).read_bytes() == (tmp_path / "one.aicc" / WEIGHTS_PATH).read_bytes()


def test_the_best_variant_for_this_machine_is_loaded_and_named(several: Path) -> None:
    for device in (None, "cpu", "CPU"):
        with load(several, device=device) as model:
            assert model.target == RUNNABLE[0]


def test_variants_find_the_same_likeliest_tokens(several: Path) -> None:
    found = []
    for target in RUNNABLE:
        with load(several, device=target) as model:
            assert isinstance(model, Model)
            assert model.target == target
            found.append(model.logits(list(range(3, 24))).argmax(axis=1).tolist())
    assert all(tokens == found[0] for tokens in found)


def test_a_variant_this_machine_cannot_run_is_passed_over_and_the_commands_say_what_is_loaded(
    several: Path, tmp_path: Path
) -> None:
    path = _requiring(several, tmp_path / "forged.aicc", RUNNABLE[:1])
    with load(path) as model:
        assert model.target == RUNNABLE[1]
    looked = json.loads(run_aicc("inspect", path, "--json", "--html", tmp_path / "page.html").out)
    assert looked["default"] == RUNNABLE[1].replace(":", "-")
    assert [fit["fit"] for fit in looked["devices"] if fit["target"] in RUNNABLE[:2]] == ["recompile", "optimal"]
    assert f"it loads <code>{looked['default']}</code>" in (tmp_path / "page.html").read_text()
    assert f"{looked['default']}, unless" in run_aicc("inspect", path).out


def test_a_variant_asked_for_by_name_is_binding(several: Path, tmp_path: Path) -> None:
    path = _requiring(several, tmp_path / "forged.aicc", RUNNABLE[:1])
    with pytest.raises(MismatchError, match="avx4096"):
        load(path, device=RUNNABLE[0])


def test_an_artifact_none_of_whose_variants_runs_here_is_refused_with_the_reason(several: Path, tmp_path: Path) -> None:
    path = _requiring(several, tmp_path / "forged.aicc", list(BEST_FIRST))
    with pytest.raises(MismatchError, match=f"{BEST_FIRST[0]}.*avx4096"):
        load(path)


def test_a_check_of_several_targets_names_them(source: Source) -> None:
    report = check_model(source, find_targets(ASKED))
    assert (report.target, report.supported) == (", ".join(BEST_FIRST), True)


@pytest.mark.parametrize("names", ["cpu:portable,openvino:cpu", "openvino:cpu,openvino:npu"])
def test_targets_that_would_not_have_the_same_weights_do_not_share_an_artifact(names: str) -> None:
    with pytest.raises(UsageError, match="cannot share an artifact"):
        find_targets(names)


@pytest.mark.parametrize("names", ["cpu:", "cpu:portable,", "cpu:portable,nonsense"])
def test_a_name_in_the_list_that_is_no_target_is_refused(names: str) -> None:
    with pytest.raises(UsageError, match="no target"):
        find_targets(names)


def test_weights_are_stored_once_and_the_portable_graph_is_kept_only_when_asked_for(
    several: Path, source: Source, tmp_path: Path
) -> None:
    compile_model(source, "cpu", tmp_path / "with.aicc", quant="int8", graph=True)
    assert len(list(load_graph(Artifact.open(tmp_path / "with.aicc")).graph)) > 0
    assert not Artifact.open(several).has(GRAPH_PATH)
    with pytest.raises(UsageError, match="no portable graph"):
        load_graph(Artifact.open(several))
    sizes = [(path / WEIGHTS_PATH).stat().st_size for path in (several, tmp_path / "with.aicc")]
    assert sizes[1] > 1.5 * sizes[0]
    assert "no portable one" in run_aicc("inspect", several).out
    assert "no portable one" not in run_aicc("inspect", tmp_path / "with.aicc").out


def test_a_compilers_cache_that_another_process_damaged_does_not_matter(tmp_path, monkeypatch):
    zig = tmp_path / "cache/aicc/zig"
    zig.mkdir(parents=True)
    for folder in ("b", "h", "o", "tmp", "z"):
        (zig / folder).write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = compile_library("int answer(void) { return 42; }", PORTABLE, tmp_path)
    assert (tmp_path / library).stat().st_size
    with pytest.raises(UnsupportedError, match=r"model\.c:1:1: error"):
        compile_library("this is no C", PORTABLE, tmp_path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc on this machine")
def test_a_compiler_of_the_users_makes_code_that_finds_the_same_tokens(source: Source, several: Path, tmp_path: Path):
    compile_model(source, RUNNABLE[0], tmp_path / "gcc.aicc", quant="int8", compiler="gcc")
    assert "gcc" in Artifact.open(tmp_path / "gcc.aicc").manifest.producer["cc"]
    found = []
    for path in (several, tmp_path / "gcc.aicc"):
        with load(path) as model:
            assert isinstance(model, Model)
            found.append(model.logits(list(range(3, 24))).argmax(axis=1).tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("target", "compiler", "said"),
    [
        ("cpu:portable", "no-such-compiler -O2", "there is no C compiler 'no-such-compiler -O2'"),
        ("cpu:portable", "gcc '", "is no command"),
        ("cpu:portable", "false", "the C compiler refuses the model"),
        ("openvino:cpu", "gcc", "no C is compiled for openvino:cpu"),
    ],
)
def test_a_compiler_that_cannot_serve_is_named(source: Source, target: str, compiler: str, said: str, tmp_path: Path):
    with pytest.raises(AiccError, match=said):
        compile_model(source, target, tmp_path / "x.aicc", compiler=compiler)
    assert not any(tmp_path.iterdir())
