"""Whatever is in a model file, importing ends in a model or in one clear sentence."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_samples import SIZES, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import make_decoder
from test_onnx_importer import make_model

from aicc.compiler.importers import Source, import_model
from aicc.compiler.importers.gguf_file import read_gguf
from aicc.compiler.importers.safetensors_file import read_weights
from aicc.compiler.sources import file_kind
from aicc.runtime.errors import AiccError, IntegrityError, UnsupportedError

TOKENS = ["a", "b", "ab", *(f"t{i}" for i in range(61))]
FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Content(bytes):
    """Bytes that hypothesis need not print."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, make_decoder("llama", **SIZES, num_hidden_layers=1), "llama", tokens=TOKENS)
    return Content(path.read_bytes())


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    make_decoder("llama", num_hidden_layers=1).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def import_folder(folder: Path):
    return import_model(Source(folder, "huggingface", "hostile"), importer="mobius", digest=False)


def import_gguf(path: Path, content: bytes):
    path.write_bytes(content)
    return import_model(Source(path, "gguf", "hostile"), digest=False)


def refusal(action: Callable[[], object]) -> str:
    """What an action is refused with, empty if it is not; anything but a foreseen failure escapes."""
    try:
        action()
    except AiccError as error:
        return error.message
    return ""


def names_or_none(refused: str, path: Path) -> bool:
    return not refused or str(path) in refused


def changed(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """The content with some bytes replaced; positions wrap around."""
    copy = bytearray(content)
    for position, value in changes:
        copy[position % len(copy)] = value
    return bytes(copy)


def with_number(content: bytes, key: str, layout: str, value: float) -> bytes:
    """The file with the value of a scalar key overwritten."""
    name = key.encode()
    at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4
    return content[:at] + struct.pack(layout, value) + content[at + struct.calcsize(layout) :]


# --- GGUF ---


@pytest.mark.parametrize("part", [0.0001, 0.001, 0.01, 0.02, 0.5, 0.999])
def test_a_truncated_gguf_says_so(gguf_bytes: bytes, tmp_path: Path, part: float) -> None:
    with pytest.raises(IntegrityError, match=r"m\.gguf") as refused:
        import_gguf(tmp_path / "m.gguf", gguf_bytes[: max(4, int(len(gguf_bytes) * part))])
    assert refused.value.remedy


@pytest.mark.parametrize("at", [8, 16])
def test_a_count_the_file_has_no_room_for_is_refused(gguf_bytes: bytes, tmp_path: Path, at: int) -> None:
    content = gguf_bytes[:at] + struct.pack("<Q", 1 << 60) + gguf_bytes[at + 8 :]
    with pytest.raises(IntegrityError, match="more than it has room for"):
        import_gguf(tmp_path / "m.gguf", content)


@pytest.mark.parametrize(
    ("key", "layout", "value"),
    [
        ("llama.block_count", "<I", 1 << 31),
        ("llama.embedding_length", "<I", 0),
        ("llama.context_length", "<I", 0xFFFFFFFF),
        ("llama.attention.head_count", "<I", 0),
        ("llama.attention.layer_norm_rms_epsilon", "<f", float("nan")),
        ("llama.rope.freq_base", "<f", -1.0),
        ("llama.vocab_size", "<I", 1 << 30),
    ],
)
def test_an_absurd_gguf_value_names_its_key(
    gguf_bytes: bytes, tmp_path: Path, key: str, layout: str, value: float
) -> None:
    with pytest.raises(IntegrityError, match=key):
        import_gguf(tmp_path / "m.gguf", with_number(gguf_bytes, key, layout, value))


def test_sizes_that_do_not_fit_together_are_refused(gguf_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"does not describe a model: .*hidden size"):
        import_gguf(tmp_path / "m.gguf", with_number(gguf_bytes, "llama.embedding_length", "<I", 97))


def test_heads_that_do_not_fit_together_are_refused(gguf_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="do not fit together"):
        import_gguf(tmp_path / "m.gguf", with_number(gguf_bytes, "llama.attention.head_count_kv", "<I", 4))


def test_a_config_of_another_model_names_the_weight(gguf_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"mlp\..*_proj\.weight.* is \[.*asks for"):
        import_gguf(tmp_path / "m.gguf", with_number(gguf_bytes, "llama.feed_forward_length", "<I", 64))


def test_a_missing_layer_names_the_weight(gguf_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"no weight for 'model\.layers\.1\."):
        import_gguf(tmp_path / "m.gguf", with_number(gguf_bytes, "llama.block_count", "<I", 2))


def test_a_tensor_beyond_the_end_is_named(gguf_bytes: bytes, tmp_path: Path) -> None:
    at = gguf_bytes.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16 + 4
    content = gguf_bytes[:at] + struct.pack("<Q", 1 << 40) + gguf_bytes[at + 8 :]
    with pytest.raises(IntegrityError, match=r"'blk\.0\.attn_q\.weight'"):
        import_gguf(tmp_path / "m.gguf", content)


def test_overlapping_tensors_are_named(gguf_bytes: bytes, tmp_path: Path) -> None:
    at = gguf_bytes.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16 + 4
    content = gguf_bytes[:at] + struct.pack("<Q", 0) + gguf_bytes[at + 8 :]
    with pytest.raises(IntegrityError, match="overlap"):
        import_gguf(tmp_path / "m.gguf", content)


def test_an_unknown_number_format_names_the_tensor(gguf_bytes: bytes, tmp_path: Path) -> None:
    at = gguf_bytes.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    content = gguf_bytes[:at] + struct.pack("<I", 77) + gguf_bytes[at + 4 :]
    with pytest.raises(UnsupportedError, match=r"'blk\.0\.attn_q\.weight' has the unknown number format 77"):
        import_gguf(tmp_path / "m.gguf", content)


def test_a_version_not_known_is_refused(gguf_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="version 9"):
        import_gguf(tmp_path / "m.gguf", gguf_bytes[:4] + struct.pack("<I", 9) + gguf_bytes[8:])


WRONG_VALUES = {  # as GGUF writes them
    "number": struct.pack("<Ii", 5, -7),
    "text": struct.pack("<IQ", 8, 2) + b"no",
    "lists": struct.pack("<IIQIQii", 9, 9, 1, 5, 2, 1, 2),
    "texts": struct.pack("<IIQQ", 9, 8, 2, 1) + b"a" + struct.pack("<Q", 1) + b"b",
    "numbers": struct.pack("<IIQff", 9, 6, 2, 1.0, float("nan")),
}
KEYS = ["general.architecture", "llama.expert_count", "llama.block_count", "llama.attention.value_length"]
KEYS += ["llama.rope.scaling.type", "llama.rope.dimension_count", "llama.rope.freq_base", "tokenizer.ggml.model"]
KEYS += ["tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type"]
KEYS += ["tokenizer.ggml.scores", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token"]
KEYS += ["tokenizer.chat_template", "general.alignment", "general.license"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", WRONG_VALUES)
def test_a_key_with_any_kind_of_value_is_read_or_refused(
    gguf_bytes: bytes, tmp_path: Path, key: str, kind: str
) -> None:
    renamed = gguf_bytes.replace(key.encode(), key.encode()[:-1] + b"?")  # takes the key's own value out of the way
    count = struct.unpack("<Q", renamed[16:24])[0] + 1
    entry = struct.pack("<Q", len(key)) + key.encode() + WRONG_VALUES[kind]
    content = renamed[:16] + struct.pack("<Q", count) + entry + renamed[24:] + bytes(64)  # data may move by as much
    assert names_or_none(refusal(lambda: import_gguf(tmp_path / "m.gguf", content)), tmp_path / "m.gguf")


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_changed_header_bytes_are_read_or_refused(gguf_bytes: bytes, tmp_path: Path, changes: list) -> None:
    content = changed(gguf_bytes, changes)
    (tmp_path / "m.gguf").write_bytes(content)
    assert names_or_none(refusal(lambda: read_gguf(tmp_path / "m.gguf")), tmp_path / "m.gguf")


@settings(FUZZ, max_examples=25)
@given(st.lists(st.tuples(st.integers(24, 4000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_changed_header_bytes_import_or_are_refused(gguf_bytes: bytes, tmp_path: Path, changes: list) -> None:
    content = changed(gguf_bytes, changes)
    assert names_or_none(refusal(lambda: import_gguf(tmp_path / "m.gguf", content)), tmp_path / "m.gguf")


# --- safetensors and config.json ---


def relabel(folder: Path, change: Callable[[dict], None]) -> None:
    """Rewrite the header of the folder's safetensors file."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def grow(header: dict) -> None:
    header["model.norm.weight"]["shape"] = [1 << 40]


def shift(header: dict) -> None:
    entry = header["model.norm.weight"]
    entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


def alias(header: dict) -> None:
    header["model.norm.weight"]["data_offsets"] = header["model.layers.0.input_layernorm.weight"]["data_offsets"]


def negative(header: dict) -> None:
    header["model.norm.weight"]["shape"] = [-72]


def unknown_format(header: dict) -> None:
    header["model.norm.weight"]["dtype"] = "F4"


def drop(header: dict) -> None:
    del header["model.norm.weight"]


def no_dictionary(header: dict) -> None:
    header["model.norm.weight"] = 7


@pytest.mark.parametrize("lie", [grow, shift, alias, negative, unknown_format, drop, no_dictionary])
def test_a_safetensors_header_that_lies_names_file_and_tensor(copied: Path, lie: Callable[[dict], None]) -> None:
    relabel(copied, lie)
    with pytest.raises(IntegrityError) as refused:
        import_folder(copied)
    assert "model.safetensors" in refused.value.message
    assert "'model." in refused.value.message or "'lm_head" in refused.value.message


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"\xff" * 64, (5).to_bytes(8, "little") + b"{{{{{", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_a_file_that_is_no_safetensors_is_refused(copied: Path, content: bytes) -> None:
    (copied / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"model\.safetensors|no weight for"):
        import_folder(copied)


def test_a_truncated_safetensors_says_so(copied: Path) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="truncated"):
        import_folder(copied)


def test_a_shard_outside_the_folder_is_refused(copied: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match="outside the model's folder"):
        import_folder(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("hidden_size", -1),
        ("vocab_size", 10**12),
        ("num_attention_heads", 0),
        ("num_attention_heads", "many"),
        ("max_position_embeddings", 2**40),
        ("hidden_size", 72.5),
        ("num_hidden_layers", True),
    ],
)
def test_an_absurd_config_value_names_its_key(copied: Path, key: str, value: object) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(IntegrityError, match=key):
        import_folder(copied)


@pytest.mark.parametrize("text", ["", "[]", "{", "nul", "[" * 100_000, '{"model_type": ["llama"]}', "\ud800"])
def test_a_config_that_is_none_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(AiccError, match=r"config\.json"):
        import_folder(copied)


def test_code_beside_a_model_is_never_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text(f"open({str(copied / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedError, match="own"):
        import_folder(copied)
    assert not (copied / "ran").exists()


def test_a_tokenizer_that_is_none_is_refused(copied: Path) -> None:
    (copied / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        import_folder(copied)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(json_values, st.binary(max_size=16))
def test_any_safetensors_header_is_read_or_refused(tmp_path: Path, header: object, data: bytes) -> None:
    text = json.dumps({"w": header}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert names_or_none(refusal(lambda: read_weights([path])), path)


@settings(FUZZ, max_examples=40)
@given(
    st.sampled_from(["hidden_act", "rope_parameters", "head_dim", "rms_norm_eps", "tie_word_embeddings"]), json_values
)
def test_any_config_value_imports_or_is_refused(llama_folder: Path, tmp_path: Path, key: str, value: object) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    shutil.copyfile(llama_folder / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    assert names_or_none(refusal(lambda: import_folder(tmp_path)), tmp_path)


# --- ONNX ---


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_changed_onnx_bytes_import_or_are_refused(tmp_path: Path, changes: list) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(changed(make_model().SerializeToString(), changes))
    assert names_or_none(refusal(lambda: import_model(Source(path, file_kind(path), "hostile"), digest=False)), path)
