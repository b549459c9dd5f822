"""A client of Triton's, in the environment that has its libraries: a command as JSON a line, an answer a line.

A tensor is `[type, shape, values]`, or a value that becomes one of one element.
"""

import json
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException


def tensor(name, value):
    """An input."""
    if not isinstance(value, list):
        kind = "BOOL" if isinstance(value, bool) else "BYTES"
        value = [kind, [1], [value]]
    kind, shape, values = value
    types = {"BOOL": bool, "BYTES": np.object_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32}
    if kind == "BYTES":
        values = [item.encode() if isinstance(item, str) else bytes(item) for item in values]
    made = grpc.InferInput(name, shape, kind)
    made.set_data_from_numpy(np.array(values, types[kind]).reshape(shape))
    return made


def outputs(result):
    """What a response has, by name."""
    told = {}
    for output in result.get_response().outputs:
        values = result.as_numpy(output.name)
        texts = output.datatype == "BYTES"
        told[output.name] = [item.decode() for item in values] if texts else values.reshape(-1).tolist()
    return told


def infer(client, model, inputs, wanted=None, **sequence):
    """One response. `sequence` says which one the request is of, and where in it."""
    try:
        wanted = wanted and [grpc.InferRequestedOutput(name) for name in wanted]
        made = [tensor(name, value) for name, value in inputs.items()]
        return {"outputs": outputs(client.infer(model, made, outputs=wanted, client_timeout=60, **sequence))}
    except InferenceServerException as error:
        return {"error": error.message()}


def stream(address, requests, stop_after=None, every=0):
    """The responses to requests that share a stream, in the order that they came in. The stream is cancelled once
    `stop_after` of them are there. Requests are sent `every` so many seconds."""
    with grpc.InferenceServerClient(address) as client:
        told, left, changed = [], {request["id"] for request in requests}, threading.Condition()

        def came(result, error):
            with changed:
                if error is not None:
                    told.append({"error": error.message(), "at": time.monotonic()})
                    left.clear() if "CANCELLED" in str(error.status()) else None
                else:
                    response = result.get_response()
                    final = response.parameters["triton_final_response"].bool_param
                    told.append({"id": response.id, "outputs": outputs(result), "final": final})
                    told[-1]["at"] = time.monotonic()
                    left.discard(response.id if final else None)
                changed.notify_all()

        client.start_stream(came)
        for request in requests:
            time.sleep(every)
            made = [tensor(name, value) for name, value in request["inputs"].items()]
            client.async_stream_infer(
                request["model"], made, request_id=request["id"], enable_empty_final_response=True
            )

        def done():
            errors = sum("error" in one for one in told)
            return len(left) <= errors or stop_after is not None and len(told) >= stop_after

        with changed:
            whole = changed.wait_for(done, timeout=60)
        client.stop_stream(cancel_requests=stop_after is not None)
        return {"told": told, "whole": whole}


def parse(path):
    """A model's configuration, as Triton's own message has it."""
    with open(path) as file:
        config = text_format.Parse(file.read(), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def main(address):
    client = None
    for line in sys.stdin:
        command = json.loads(line)
        if "parse" in command:
            answer = parse(command["parse"])
        elif "stream" in command:
            answer = stream(address, command["stream"], command.get("stop_after"), command.get("every", 0))
        else:
            client = client or grpc.InferenceServerClient(address)
            answer = infer(client, command["model"], command["inputs"], command.get("outputs"), **command.get("sequence", {}))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
