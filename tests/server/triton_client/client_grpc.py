"""The same over gRPC, by TLS and with a key: client_grpc.py HOST:PORT FOLDER, which has ca.pem and the tensors."""

import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

address, folder = sys.argv[1], Path(sys.argv[2])
client = triton.InferenceServerClient(address, ssl=True, root_certificates=str(folder / "ca.pem"))
key = {"authorization": "Bearer secret"}
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready("minilm", headers=key)
assert client.is_model_ready("minilm", "default", headers=key)
assert client.get_server_metadata(headers=key).name == "aicc"
card = client.get_model_metadata("minilm", headers=key)
assert list(card.versions) == ["default"]
assert [tensor.datatype for tensor in card.inputs] == ["INT64"] * 3
assert [list(tensor.shape) for tensor in card.inputs] == [[-1, -1]] * 3
[name] = [tensor.name for tensor in card.outputs]

given = dict(np.load(folder / "given.npz"))
inputs = [triton.InferInput(key, array.shape, "INT64") for key, array in given.items()]
for tensor in inputs:
    tensor.set_data_from_numpy(given[tensor.name()])
for version, outputs in (("", None), ("default", [triton.InferRequestedOutput(name)])):
    found = client.infer("minilm", inputs, version, outputs=outputs, request_id="7", headers=key)
    assert (found.get_response().id, found.get_response().model_version) == ("7", "default")
    np.save(folder / f"rpc-{outputs is None}.npy", found.as_numpy(name))


def status_of(*arguments: object, **options: object) -> str:
    try:
        client.infer(*arguments, **options)  # type: ignore[arg-type]
    except triton.InferenceServerException as error:
        return str(error.status())
    return "none"


assert status_of("minilm", inputs) == "StatusCode.UNAUTHENTICATED"
assert status_of("nobody", inputs, headers=key) == "StatusCode.NOT_FOUND"
assert status_of("minilm", inputs, "2", headers=key) == "StatusCode.NOT_FOUND"
assert status_of("minilm", inputs[1:], headers=key) == "StatusCode.INVALID_ARGUMENT"
assert status_of("minilm", inputs, headers=key, priority=1) == "StatusCode.INVALID_ARGUMENT"
assert status_of("minilm", inputs, headers=key, compression_algorithm="gzip") == "StatusCode.UNIMPLEMENTED"
