"""RAT+ language models: checkpoints to ONNX packages, and packages to tokens.

    import ratplus

    ratplus.export("model.pth", "kjv", tokenizer="tokenizer.json")
    with ratplus.Model.open("kjv") as model:
        for token in model.generate("In the beginning God", max_new_tokens=32):
            print(token.text, end="", flush=True)
"""

from importlib.metadata import version as _version

from ._errors import Error, InputError, QueueFull, RunError
from ._export import Exported, export
from ._libraries import library_path, tensorrt_plugin_path
from ._model import Model, Stream
from ._ratplus import Completion, Scores, State, Token

__version__ = _version("ratplus")
__all__ = [
    "Completion",
    "Error",
    "Exported",
    "InputError",
    "Model",
    "QueueFull",
    "RunError",
    "Scores",
    "State",
    "Stream",
    "Token",
    "export",
    "library_path",
    "tensorrt_plugin_path",
]
