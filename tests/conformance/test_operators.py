"""Every operator on every target of this machine, against ONNX's reference evaluator."""

import pytest
from op_case import Case
from op_run import all_cases, known, outcome, targets_here

from aicc.runtime.target import Target


@pytest.mark.parametrize("target", targets_here(), ids=lambda target: target.name)
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_an_operator_computes_what_onnx_says_or_is_refused(case: Case, target: Target) -> None:
    found = outcome(case, target)
    expected = known(target.name).get(case.name)
    if expected is None:
        assert found.status == "ok", f"{found.status}: {found.detail}"
    else:
        assert found.status == expected["status"], f"listed as {expected}, and is {found}: bring the list up to date"


@pytest.mark.parametrize("target", targets_here(), ids=lambda target: target.name)
def test_what_is_listed_as_unsupported_is_a_case(target: Target) -> None:
    assert set(known(target.name)) <= {case.name for case in all_cases()}


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names))


def test_families_that_run_on_any_machine_are_among_the_targets() -> None:
    assert {"null:host", "reference:cpu", "openvino:cpu"} <= {target.name for target in targets_here()}
