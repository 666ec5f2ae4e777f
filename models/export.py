"""A model as an ONNX file, for programs that have no PyTorch."""

import io
import json
import warnings

import torch
from torch import nn

from utils import files
from utils.errors import UserError

OPSET = 17


class Tuple(nn.Module):
    """A model with its outputs in a tuple in place of a dict."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return tuple(self.model(images).values())


def write_onnx(path, model, size, classes):
    """Write `model`, on the CPU, with its normalisation; returns the names of the outputs.

    Input `images`: float32 (N, 3, size, size), RGB, 0 to 1. Output `logits`: float32 (N, K, size, size), and
    of a model that separates instances `center` and `offset`, see `InstanceDecoder`. N is free. The names of
    the classes are the file's metadata `classes`, a JSON list.
    """
    try:
        import onnx  # here: nothing else needs it
    except ImportError:
        raise UserError("ONNX needs a package more: pip install -r requirements-extra.txt") from None
    memory = io.BytesIO()
    # torchvision's networks have no `instances`
    channels = {"logits": len(classes)} | (
        {"center": 1, "offset": 2} if getattr(model, "instances", None) else {}
    )
    free = {name: {0: "N"} for name in ("images", *channels)}
    with warnings.catch_warnings():
        # of tracing, which takes sizes for constants, as they are; and of torch's newer way, which needs more
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Tuple(model).eval(),
            (torch.zeros(1, 3, size, size),),
            memory,
            input_names=["images"],
            output_names=list(channels),
            dynamic_axes=free,
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load_from_string(memory.getvalue())
    for output in graph.graph.output:
        sides = output.type.tensor_type.shape.dim
        for side, length in zip(sides[1:], (channels[output.name], size, size), strict=True):
            side.dim_value = length
    onnx.helper.set_model_props(graph, {"classes": json.dumps(classes)})
    onnx.checker.check_model(graph)
    files.write_whole(path, graph.SerializeToString())
    return list(channels)
