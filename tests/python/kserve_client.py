"""KServe's own client against an inference server, in the environment that has it: what it was told, as JSON.

Of `kserve` its client and its protocol are imported, as they are; importing the package itself would import what makes
servers and talks to Kubernetes, too, which is not installed.
"""

import asyncio
import importlib.util
import json
import sys
import types

import grpc
import httpx
import numpy as np

kserve = types.ModuleType("kserve")
kserve.__path__ = importlib.util.find_spec("kserve").submodule_search_locations
sys.modules["kserve"] = kserve

from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest  # noqa: E402


def request(model, inputs, binary):
    """A request: tensors as bytes, or as the values themselves."""
    made = []
    for name, (kind, values) in inputs.items():
        tensor = InferInput(name, [len(values)], kind, None if binary else values)
        if binary:
            types = {"BYTES": np.object_, "INT32": np.int32, "BOOL": bool}
            values = [value.encode() if kind == "BYTES" else value for value in values]
            tensor.set_data_from_numpy(np.array(values, types[kind]), binary_data=True)
        made.append(tensor)
    return InferRequest(model, made)


def told(response):
    """The outputs, by name."""
    outputs = {}
    for output in response.outputs:
        values = output.as_numpy().reshape(-1).tolist()
        outputs[output.name] = [value.decode() if isinstance(value, bytes) else value for value in values]
    return outputs


async def main(rest, grpc_address, model, inputs):
    """Both clients: whether the server and the model are ready, and what the model answers."""
    answers = {}
    wrong = InferRequest(model, [InferInput("stream", [1], "BOOL", [True])])
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        answers["rest_ready"] = [await client.is_model_ready(rest, name) for name in (model, "nobody")]
        for binary in (True, False):
            made = request(model, inputs, binary)
            answers[f"rest_{binary}"] = told(await client.infer(rest, made, model_name=model))
        try:
            await client.infer(rest, wrong, model_name=model)
        except httpx.HTTPStatusError as error:
            answers["rest_wrong"] = f"{error.response.status_code}: {error.response.text}"
    async with InferenceGRPCClient(grpc_address) as client:
        answers["grpc_ready"] = [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready(model),
        ]
        for binary in (True, False):
            answers[f"grpc_{binary}"] = told(await client.infer(request(model, inputs, binary)))
        try:
            await client.infer(wrong)
        except grpc.RpcError as error:
            answers["grpc_wrong"] = f"{error.code().name}: {error.details()}"
    return answers


if __name__ == "__main__":
    _, rest, address, model, inputs = sys.argv
    print(json.dumps(asyncio.run(main(rest, address, model, json.loads(inputs)))))
