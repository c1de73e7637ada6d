"""Asks a server of the encoder `minilm` by Triton's own client, and saves what came: client.py HOST:PORT FOLDER."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

address, folder = sys.argv[1], Path(sys.argv[2])
client = triton.InferenceServerClient(address)
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("minilm")
assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
card = client.get_model_metadata("minilm")
assert [tensor["datatype"] for tensor in card["inputs"]] == ["INT64"] * 3
assert [tensor["shape"] for tensor in card["inputs"]] == [[-1, -1]] * 3
[name] = [tensor["name"] for tensor in card["outputs"]]

given = dict(np.load(folder / "given.npz"))
for binary in (True, False):
    inputs = [triton.InferInput(key, array.shape, "INT64") for key, array in given.items()]
    for tensor in inputs:
        tensor.set_data_from_numpy(given[tensor.name()], binary_data=binary)
    for outputs in (None, [triton.InferRequestedOutput(name, binary_data=binary)]):
        found = client.infer("minilm", inputs, outputs=outputs, request_id="7")
        assert found.get_response()["id"] == "7"
        np.save(folder / f"{binary}-{outputs is None}.npy", found.as_numpy(name))
try:
    client.infer("nobody", inputs)
except triton.InferenceServerException as error:
    refused = error
assert refused.status() == "404"
assert "'nobody' does not exist" in refused.message()
