"""``aicc inspect``: the text, the object, and the page with pictures."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from aicc_command import Run

from aicc.cli.inspect_page import render
from aicc.cli.inspect_page.layers import parts
from aicc.cli.inspect_page.pictures import share
from aicc.cli.inspection import DeviceFit, InspectDocument, look_into
from aicc.compiler.report import CompileReport, LayerRecord, OpCoverage, PassRecord, PhaseRecord
from aicc.runtime.artifact import Artifact, Quality

HOSTILE = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b]0;owned\x07"


def test_it_says_what_an_artifact_is_and_where_it_runs(aicc: Run, demo_artifact: Artifact):
    done = aicc("inspect", demo_artifact.path, "--verify")
    assert done.code == 0
    for text in ("smollm2-135m", "Apache-2.0", "8,192 tokens", "all match", "openvino:cpu", "optimal"):
        assert text in done.out
    assert done.err == ""


def test_its_object_holds_manifest_report_and_devices(aicc: Run, demo_artifact: Artifact):
    done = aicc("inspect", demo_artifact.path, "--json")
    document = msgspec.json.decode(done.out, type=InspectDocument)
    assert set(json.loads(done.out)) == {field.name for field in msgspec.structs.fields(InspectDocument)}
    assert document.manifest == demo_artifact.manifest
    assert document.report is not None
    assert [phase.name for phase in document.report.phases] == ["import", "optimize", "quantize", "lower", "package"]
    assert [(fit.target, fit.fit) for fit in document.devices] == [("openvino:cpu", "optimal")]
    assert document.verified is None
    assert json.loads(aicc("inspect", demo_artifact.path, "--json", "--verify").out)["verified"] is True


def test_a_page_that_cannot_be_written_is_named_as_the_user_named_it(aicc: Run, tensors_artifact: Path, tmp_path: Path):
    done = aicc("inspect", tensors_artifact, "--html", tmp_path / "none" / "page.html")
    assert done.code == 2
    assert (
        done.err == f"aicc: No such file or directory: {tmp_path}/none/page.html. Check the path and its permissions.\n"
    )


def test_a_page_replaces_no_device_and_the_file_behind_a_link(aicc: Run, tensors_artifact: Path, tmp_path: Path):
    pipe, link, page = (tmp_path / name for name in ("pipe", "link.html", "page.html"))
    os.mkfifo(pipe)
    done = aicc("inspect", tensors_artifact, "--html", pipe)
    assert (done.code, pipe.is_fifo()) == (2, True)
    assert "pipe is there and is no file" in done.err
    page.write_text("an earlier one")
    link.symlink_to(page.name)
    assert aicc("inspect", tensors_artifact, "--html", link).code == 0
    assert link.is_symlink()
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(tmp_path.iterdir()) == [link, page, pipe]


def test_without_its_timings_an_artifact_is_still_shown(aicc: Run, tensors_artifact: Path, tmp_path: Path):
    copy = tmp_path / "copy.aicc"
    for path in tensors_artifact.rglob("*"):
        if path.is_file() and path.name != "timings.json":
            (copy / path.relative_to(tensors_artifact)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(tensors_artifact)).write_bytes(path.read_bytes())
    done = aicc("inspect", copy, "--html", tmp_path / "page.html")
    assert done.code == 0
    assert "seconds and memory are unknown" in (tmp_path / "page.html").read_text()


class Page(HTMLParser):
    """A page taken apart: its tags must nest, and everything a browser might fetch or run is noted."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="session")
def demo_document(demo_artifact: Artifact) -> InspectDocument:
    return look_into(demo_artifact.path, verify=False)


def test_the_page_is_one_file_that_fetches_and_runs_nothing(aicc: Run, demo_artifact: Artifact, tmp_path: Path):
    done = aicc("inspect", demo_artifact.path, "--html", tmp_path / "page.html")
    assert done.err == f"wrote {tmp_path / 'page.html'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form", "base", "a"}
    assert not {name for name, _ in page.attributes if name in ("src", "href", "srcset") or name.startswith("on")}
    assert "url(" not in text
    assert "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in (
        page.attributes
    )


def test_the_page_tells_layers_passes_operators_quality_and_devices(demo_document: InspectDocument):
    quality = Quality(2460, 0.00104, 0.0042, 0.9715, 29.454, 29.448, "heldout.txt")
    manifest = msgspec.structs.replace(demo_document.manifest, quality=quality)
    page = Page(render(msgspec.structs.replace(demo_document, manifest=manifest)))
    for text in ("layer 29", "embeddings", "merge projections", "RMSNormalization", "97.2%", "29.454", "optimal"):
        assert text in page.words


def test_every_picture_is_told_in_words(demo_document: InspectDocument):
    attributes = Page(render(demo_document)).attributes
    pictures = attributes.count(("role", "img"))
    assert pictures > 10
    assert len([value for name, value in attributes if name == "aria-label" and value]) == pictures


def test_nothing_from_an_artifact_becomes_markup(demo_document: InspectDocument):
    passes = [PassRecord(HOSTILE, 10, 5, 1.0, refused={HOSTILE: HOSTILE})]
    report = CompileReport(
        HOSTILE,
        HOSTILE,
        [PhaseRecord(HOSTILE, 1.0, 1000, passes)],
        [OpCoverage(HOSTILE, 1, 1, 1, HOSTILE)],
        [LayerRecord(HOSTILE, 100, HOSTILE)],
        notes=[HOSTILE],
    )
    hostile = InspectDocument(
        HOSTILE,
        1,
        msgspec.structs.replace(demo_document.manifest, name=HOSTILE, quantization=HOSTILE),
        report,
        [DeviceFit(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    )
    text = render(hostile)
    page = Page(text)
    assert not page.tags & {"script", "img"}
    assert not {name for name, _ in page.attributes if name.startswith("on")}
    assert "\x1b" not in text
    assert page.words.count("<script>alert(1)</script>") >= 10


def test_layers_are_gathered_by_their_number_whatever_the_source_calls_them():
    names = ["embed", "model.layers.0.mlp", "model.layers.0.attn", "blk.1.ffn_up", "encoder.layer.2.output", "norm"]
    gathered = parts([LayerRecord(name, 10, "int8") for name in names])
    assert [(part.label, part.bytes) for part in gathered] == [
        ("embed", 10),
        ("layer 0", 20),
        ("layer 1", 10),
        ("layer 2", 10),
        ("norm", 10),
    ]


def test_more_parts_than_a_picture_can_show_are_gathered_without_losing_a_byte():
    gathered = parts([LayerRecord(f"part{i}", i + 1, "int8") for i in range(500)], most=50)
    assert len(gathered) == 50
    assert gathered[-1].label == "451 small ones"
    assert sum(part.bytes for part in gathered) == sum(range(501))


def test_a_share_is_never_rounded_to_nothing_or_everything():
    assert [share(part, 10_000) for part in (0, 1, 5000, 9999, 10_000)] == [
        "0%",
        "under 0.1%",
        "50%",
        "over 99.9%",
        "100%",
    ]
