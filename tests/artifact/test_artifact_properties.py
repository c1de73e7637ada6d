"""Whatever bytes a reader is given, it gives an artifact or an AiccError: never anything else, and never for long."""

import contextlib
import copy
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from artifact_sample import decoder_facts, forge_file, read_document, sealed, small_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicc.compiler.graph_file import load_graph
from aicc.runtime.artifact import (
    GRAPH_PATH,
    Artifact,
    FileEntry,
    Format,
    Manifest,
    MemoryFacts,
    Quality,
    SourceInfo,
    Variant,
    decode_manifest,
    encode_manifest,
)
from aicc.runtime.errors import AiccError, IntegrityError

PATH = Path("model.aicc/manifest.json")
bounded = settings(max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])

printable = st.characters(exclude_categories=["Cc", "Cs"])
names = st.text(printable, min_size=1, max_size=30)
texts = st.text(printable, max_size=30)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
finite = st.floats(0, 1, allow_nan=False)
facts = st.dictionaries(names, texts, max_size=3)
qualities = st.builds(
    Quality,
    st.integers(1, 1 << 40),
    finite,
    finite,
    finite,
    finite.map(lambda x: x + 1),
    finite.map(lambda x: x + 1),
    names,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any manifest a compiler could write."""
    count = draw(st.integers(0, 4))
    listed = [f"variants/v{i}/program-{draw(st.integers(0, 9))}.bin" for i in range(count)]
    sizes = st.integers(0, 1 << 50)
    variants = [Variant(f"v{i}", f"null:v{i}", (Path(p).name,), draw(facts), draw(facts)) for i, p in enumerate(listed)]
    files = [FileEntry(path, draw(sizes), draw(hashes)) for path in [*listed, "report.json"]]
    stored = sum(file.bytes for file in files)
    is_decoder = draw(st.booleans())
    return msgspec.structs.replace(
        small_manifest(),
        format=Format(1, draw(st.integers(0, 9))),
        name=draw(names),
        kind="decoder" if is_decoder else "tensors",
        producer=draw(facts),
        source=SourceInfo(draw(names), draw(names), draw(hashes), draw(texts), draw(texts)),
        variants=tuple(variants) or (Variant("only", "null:cpu", ()),),
        memory=MemoryFacts(min(draw(sizes), stored), draw(st.integers(0, 256)), draw(sizes)),
        files=tuple(files),
        llm=decoder_facts() if is_decoder else None,
        quality=draw(st.none() | qualities),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("../x") | st.just(10**30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every ``(container, key)`` of a JSON document."""
    keys = document.keys() if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in keys for place in ((document, key), *places(document[key]))]


@given(manifests())
@bounded
def test_every_manifest_comes_back_as_it_was(manifest):
    encoded = encode_manifest(manifest)
    assert decode_manifest(encoded, PATH) == manifest
    assert encode_manifest(decode_manifest(encoded, PATH)) == encoded


@given(st.data())
@bounded
def test_a_manifest_with_anything_replaced_is_valid_or_refused(pristine, data):
    document = read_document(pristine)
    document |= {"kind": "decoder", "llm": msgspec.to_builtins(decoder_facts())}
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(document)))
        if data.draw(st.booleans()) and isinstance(container, dict):
            del container[key]
            container[data.draw(st.text(max_size=10))] = data.draw(json_values)
        else:
            container[key] = copy.deepcopy(data.draw(json_values))
    with contextlib.suppress(AiccError):
        manifest = decode_manifest(sealed(document), PATH)
        assert decode_manifest(encode_manifest(manifest), PATH) == manifest


@given(st.binary(max_size=200))
@bounded
def test_bytes_that_are_no_manifest_are_refused(content):
    with pytest.raises(AiccError):
        decode_manifest(content, PATH)


@pytest.mark.parametrize("nest", ["[", '{"a":'])
@pytest.mark.parametrize("where", ["format", "invented", "signatures"])
def test_deep_nesting_is_refused(pristine, nest, where):
    document = {**read_document(pristine), where: "HERE"}
    content = sealed(document).replace(b'"HERE"', nest.encode() * 100_000)
    with pytest.raises(IntegrityError):
        decode_manifest(content, PATH)


def damage(content: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(damaged) + 1)
        end = at + rng.choice([1, 1, 4, 64])
        match rng.choice(["change", "cut", "double", "insert", "end"]):
            case "change":
                damaged[at:end] = rng.randbytes(end - at)
            case "cut":
                del damaged[at:end]
            case "double":
                damaged[at:at] = damaged[at:end]
            case "insert":
                damaged[at:at] = rng.choice(
                    [b"\0", b"-", b"9" * 40, b'"', b"\xff\xfe", b"\\ud800", b"../", b"}", b"[["]
                )
            case "end":
                del damaged[at:]
    return bytes(damaged)


def test_fuzz_no_damage_to_a_manifest_goes_unnoticed(sample):
    rng = random.Random(0)
    original = (sample / "manifest.json").read_bytes()
    for _ in range(1500):
        content = damage(original, rng)
        if content != original:
            (sample / "manifest.json").write_bytes(content)
            with pytest.raises(AiccError):
                Artifact.open(sample)


def test_fuzz_no_damage_to_any_file_goes_unnoticed(sample):
    rng = random.Random(1)
    files = [entry.path for entry in Artifact.open(sample).manifest.files]
    for _ in range(300):
        path = sample / rng.choice(files)
        original = path.read_bytes()
        content = damage(original, rng)
        if content != original:
            path.write_bytes(content)
            with pytest.raises(IntegrityError, match=path.name):
                Artifact.open(sample).verify()
        path.write_bytes(original)
    Artifact.open(sample).verify()


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_fuzz_a_forged_graph_is_read_or_refused(sample):
    rng = random.Random(2)
    original = (sample / GRAPH_PATH).read_bytes()
    read = 0
    for _ in range(500):
        forge_file(sample, GRAPH_PATH, damage(original, rng))
        with contextlib.suppress(AiccError):
            load_graph(Artifact.open(sample))
            read += 1
    assert read < 500  # something was refused


@pytest.mark.parametrize("relative", ["report.json", "manifest.json", "timings.json"])
def test_fuzz_every_json_file_is_read_or_refused(sample, pristine, relative):
    rng = random.Random(3)
    original = (pristine / relative).read_bytes()
    for _ in range(300):
        content = damage(original, rng)
        shutil.copytree(pristine, sample, dirs_exist_ok=True)
        if relative == "report.json":
            forge_file(sample, relative, content)
        else:
            (sample / relative).write_bytes(content)
        with contextlib.suppress(AiccError):
            assert isinstance(Artifact.open(sample).report(), dict)
