"""Resize, crop and normalisation as the first nodes of an ONNX graph."""

from typing import Any

import numpy as np

from crossdistill.data.preprocessing import Preprocessing

_CUBIC = -0.5
"""Coefficient of the cubic kernel, as Pillow's."""


def with_images(model: Any, look: Preprocessing) -> Any:
    """Return a model that reads images as uint8 (batch, height, width, channels), all of one size, instead of tensors.

    Pixels are those of Pillow, but for one level of 255; a few of them differ by more where an image is resized to
    nearly its own size, as onnxruntime computes it.
    """
    from onnx import compose

    graph = preprocessing_model(look, model.opset_import[0].version, model.ir_version)
    # The names of the network's own values may be the same.
    graph = compose.add_prefix(graph, "preprocessing.", rename_inputs=False)
    merged = compose.merge_models(graph, model, io_map=[("preprocessing.tensor", model.graph.input[0].name)])
    merged.graph.name = "student"
    return merged


def preprocessing_model(look: Preprocessing, opset: int, ir_version: int) -> Any:
    """Return the preprocessing alone as an ONNX model, from `image` to `tensor`."""
    from onnx import TensorProto, helper, numpy_helper

    channels, *sides = look.input_size
    nodes = [*_sizes(), *_new_size(look), *_resized(), *_cropped(), *_normalised()]
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "preprocessing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", channels])],
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, ["batch", channels, *sides])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in _constants(look).items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def _constants(look: Preprocessing) -> dict[str, Any]:
    return {
        "two": np.float32(2),
        "low": np.float32(0),
        "high": np.float32(255),
        "mean": np.asarray(look.mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.asarray(look.std, np.float32).reshape(1, -1, 1, 1),
        "resized": np.array(look.resized),
        "side": np.array(look.input_size[1:]),
        "first": np.array([0]),
        "second": np.array([1]),
        "third": np.array([2]),
        "end": np.array([4]),
        "axes": np.array([2, 3]),
    }


def _sizes() -> list[Any]:
    """Return the nodes from `image` to `values` (B, C, H, W), and to the parts of its shape: `outer` and `inner`."""
    from onnx import TensorProto
    from onnx.helper import make_node as node

    return [
        node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["values"], to=TensorProto.FLOAT),
        node("Shape", ["values"], ["shape"]),
        node("Slice", ["shape", "first", "third"], ["outer"]),
        node("Slice", ["shape", "third", "end"], ["inner"]),
    ]


def _new_size(look: Preprocessing) -> list[Any]:
    """Return the nodes from `inner` to `new`, the size that the image is resized to."""
    from onnx import TensorProto
    from onnx.helper import make_node as node

    if look.crop_mode == "squash":
        return [node("Identity", ["resized"], ["new"])]
    _, height, width = look.input_size
    if height == width:
        return [
            node("ReduceMin", ["inner"], ["short"], keepdims=1),
            node("Mul", ["inner", "resized"], ["scaled"]),
            node("Div", ["scaled", "short"], ["new"]),
        ]
    return [
        node("Cast", ["inner"], ["inner_double"], to=TensorProto.DOUBLE),
        node("Cast", ["resized"], ["resized_double"], to=TensorProto.DOUBLE),
        node("Div", ["inner_double", "resized_double"], ["ratios"]),
        node("ReduceMin", ["ratios"], ["ratio"], keepdims=1),
        node("Div", ["inner_double", "ratio"], ["exact"]),
        node("Round", ["exact"], ["rounded"]),
        node("Cast", ["rounded"], ["new"], to=TensorProto.INT64),
    ]


def _resized() -> list[Any]:
    """Return the nodes from `values` to `bytes`: Pillow resizes the rows, then the columns, and rounds each time."""
    from onnx.helper import make_node as node

    return [
        node("Slice", ["inner", "first", "second"], ["height"]),
        node("Slice", ["new", "second", "third"], ["new_width"]),
        node("Concat", ["outer", "height", "new_width"], ["row_sizes"], axis=0),
        *_resize("values", "row_sizes", "rows"),
        node("Concat", ["outer", "new"], ["sizes"], axis=0),
        *_resize("rows", "sizes", "bytes"),
    ]


def _cropped() -> list[Any]:
    """Return the nodes from `bytes` to `cut`, its centre."""
    from onnx import TensorProto
    from onnx.helper import make_node as node

    return [
        node("Sub", ["new", "side"], ["excess"]),
        node("Cast", ["excess"], ["excess_float"], to=TensorProto.FLOAT),
        node("Div", ["excess_float", "two"], ["half"]),
        node("Round", ["half"], ["half_whole"]),
        node("Cast", ["half_whole"], ["begin"], to=TensorProto.INT64),
        node("Add", ["begin", "side"], ["stop"]),
        node("Slice", ["bytes", "begin", "stop", "axes"], ["cut"]),
    ]


def _normalised() -> list[Any]:
    from onnx.helper import make_node as node

    return [
        node("Div", ["cut", "high"], ["unit"]),
        node("Sub", ["unit", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["tensor"]),
    ]


def _resize(source: str, sizes: str, target: str) -> list[Any]:
    """Return the nodes that resize to `sizes` and round to bytes."""
    from onnx import helper

    return [
        helper.make_node(
            "Resize",
            [source, "", "", sizes],
            [f"{target}_smooth"],
            mode="cubic",
            antialias=1,
            cubic_coeff_a=_CUBIC,
            coordinate_transformation_mode="half_pixel",
            exclude_outside=1,
        ),
        helper.make_node("Round", [f"{target}_smooth"], [f"{target}_whole"]),
        helper.make_node("Clip", [f"{target}_whole", "low", "high"], [target]),
    ]
