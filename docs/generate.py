"""Regenerates what is generated of the documentation and of the code; `make docs` runs it.

With ``--check`` nothing is written, and the exit code says whether anything is out of date.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

from aicc.cli.machine import by_family
from aicc.cli.reference import reference
from aicc.compiler.plan.constants import constants, figures
from aicc.runtime.target import all_targets

ROOT = Path(__file__).parent.parent


def targets_table() -> str:
    """Every target, a row for those of a family that are alike; what is true of the target, not of this machine."""
    rows = ["| target | what it is | shown | needs |", "|---|---|---|---|"]
    targets = all_targets().values()
    said = ((t.name, t.description, t.evidence, f"`aicc[{t.extra}]`" if t.extra else "") for t in targets)
    rows += [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in by_family(said)]
    return "\n".join(rows)


def constants_table() -> str:
    """Constants of the cost model, each with its source."""
    rows = ["| constant | value | what it is | grade | source |", "|---|---:|---|---|---|"]
    for chip, values in constants().items():
        rows += [f"| `{chip}.{name}` | {c.value:g} | {c.unit} | {c.grade} | {c.source} |" for name, c in values.items()]
    return "\n".join(rows)


def figures_table() -> str:
    """Published figures of the cost model, and how held-out ones came out when they were first compared."""
    rows = ["| figure | target | use | published | source | outcome |", "|---|---|---|---:|---|---|"]
    for f in figures():
        published = f"{f.measured:,.0f} {f.unit}"
        rows.append(f"| {f.name} | `{f.target}` | {f.use} | {published} | {f.source} | {f.outcome} |")
    return "\n".join(rows)


def between(text: str, marker: str, content: str) -> str:
    """The text with what stands between a pair of markers replaced."""
    pattern = rf"(<!-- {marker}:begin -->\n).*?(<!-- {marker}:end -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"there is no pair of {marker} markers")
    return replaced


def operators() -> str:
    """The page of operators, from a run of their cases: about a minute."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]
    from ops_page import ops_page

    return ops_page()


def messages() -> dict[Path, str]:
    """The Python of the Open Inference Protocol's messages over gRPC, as its compiler makes it."""
    folder = ROOT / "runtime" / "server" / "open_inference"
    with tempfile.TemporaryDirectory() as made:
        source = str(folder / "open_inference.proto")
        if protoc.main(["protoc", f"-I{folder}", f"--python_out={made}", f"--pyi_out={made}", source]) != 0:
            raise SystemExit(f"{source} does not compile")
        return {folder / path.name: path.read_text() for path in Path(made).iterdir()}


def main() -> int:
    """Regenerate, or check."""
    readme, cli, plan = ROOT / "README.md", ROOT / "docs" / "cli.md", ROOT / "docs" / "plan.md"
    planning = between(between(plan.read_text(), "constants", constants_table()), "figures", figures_table())
    pages = {readme: between(readme.read_text(), "targets", targets_table()), cli: reference(), plan: planning}
    pages |= messages()
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        return int(bool(stale))
    for path in stale:
        path.write_text(pages[path])
    # Checked not here but by the test that has run the cases anyway.
    (ROOT / "docs" / "ops.md").write_text(operators())
    return 0


if __name__ == "__main__":
    sys.exit(main())
