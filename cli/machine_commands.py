"""``aicc targets`` and ``aicc doctor``: what can be compiled for and run on this machine."""

from __future__ import annotations

import click

from aicc.cli.output import facts, human_bytes, note, print_json, print_result, table


@click.command(short_help="List what can be compiled for and run here.")
@click.argument("family", required=False)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, of every target or those of FAMILY, instead.",
)
def targets(family: str | None, as_json: bool) -> None:
    """List families of targets, or every target of FAMILY: what it is, and whether it compiles and runs here.

    A target is named FAMILY:VARIANT; the family alone means its first variant
    that this machine's processor can run. EVIDENCE says how
    far it has been shown to work on the machines aicc is tested on: it runs there, it is emulated
    there, it only compiles there, or it is prepared and untested.
    """
    from aicc.cli.machine import by_family, families, list_targets

    document = list_targets(family)
    if as_json:
        return print_json(document)
    if family is None:
        columns = ("family", "compiles here", "runs here", "evidence", "variants")
        print_result(table("", columns, families(document.targets)))
        return note("`aicc targets FAMILY` says what its variants are, and why one does not compile or run here.")
    rows = [
        (t.name, t.description, "yes" if t.compiles else "no", "yes" if t.runs else "no", t.evidence)
        for t in document.targets
    ]
    reasons = [
        (t.name, cannot, reason)
        for t in document.targets
        for cannot, reason in (("compile", t.compiles_reason), ("run", t.runs_reason))
        if reason
    ]
    print_result(table("", ("target", "what it is", "compiles here", "runs here", "evidence"), by_family(rows)))
    if reasons:
        print_result(table("why not", ("target", "cannot", "reason"), by_family(reasons)))


@click.command(short_help="Describe this machine and what is wrong with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(as_json: bool) -> None:
    """Describe this machine as aicc sees it, and say what is wrong with it.

    Shows the processor and its instruction sets, the cores and memory this process may really use
    (containers count), the devices of each target family, package versions and caches. Problems
    come last, each with its remedy.
    """
    from aicc.cli.machine import examine

    document = examine()
    if as_json:
        return print_json(document)
    cpu = document.processor
    print_result(
        facts(
            [
                ("aicc", f"{document.aicc} on Python {document.python} ({document.python_path})"),
                ("system", document.system),
                ("processor", f"{cpu.model} ({cpu.architecture})"),
                ("instruction sets", " ".join(cpu.instruction_sets) or "none that matter here"),
                ("cores", f"{cpu.usable_cores} usable of {cpu.cores}"),
                (
                    "memory",
                    f"{human_bytes(document.memory_available)} available of {human_bytes(document.memory_total)}",
                ),
                ("cache", f"{document.cache.path}, {human_bytes(document.cache.disk_free)} free on its disk"),
                *((f"  {entry.name}", human_bytes(entry.bytes)) for entry in document.cache.entries),
            ]
        ),
        table(
            "devices",
            ("family", "device", "best target", "description"),
            [(d.family, d.name or "none", d.target, d.description or d.problem) for d in document.devices],
        ),
        table(
            "packages",
            ("package", "installed", "needed", "for"),
            [
                (p.name, p.installed or "no", p.requirement, p.extra or "everything")
                for p in document.packages
                if p.extra != "test"  # of no use to who does not change aicc
            ],
        ),
    )
    if document.problems:
        print_result(table("problems", ("what", "remedy"), [(p.what, p.remedy) for p in document.problems]))
    else:
        print_result("No problems found.")
