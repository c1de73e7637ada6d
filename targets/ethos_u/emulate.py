"""``python -m aicc.targets.ethos_u.emulate PROGRAM INPUTS OUTPUTS``: the TOSA reference model in a process of its own.

It warns on stderr at every run, and a damaged program must not end the process that asks.
"""

from __future__ import annotations

import sys

import numpy as np
import tosa_reference_model


def main(program: str, inputs: str, outputs: str) -> int:
    """Run a program once.

    Args:
        program: A TOSA flatbuffer.
        inputs: A ``.npz`` file of its inputs, in order.
        outputs: The ``.npz`` file to write.
    """
    with open(program, "rb") as file, np.load(inputs) as arrays:
        results, status = tosa_reference_model.run(file.read(), [arrays[name] for name in arrays.files])
    if status.name != "TOSA_VALID":
        print(status.name, file=sys.stderr)
        return 1
    np.savez(outputs, *results)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
