"""What is left in floating point, on a small graph with attention."""

import numpy as np
import pytest

from crossdistill.data.preprocessing import Preprocessing
from crossdistill.export.about import describe
from crossdistill.export.quantise import quantise

LOOK = dict(interpolation="bicubic", crop_pct=1.0, crop_mode="center")
ABOUT = describe("attention", [], Preprocessing(input_size=(1, 6, 8), mean=(0.5,), std=(0.5,), **LOOK))


@pytest.fixture
def graph(tmp_path):
    """A linear layer, and the product of what it returns with its transpose."""
    onnx = pytest.importorskip("onnx")
    make, rng = onnx.helper, np.random.default_rng(0)
    weight = rng.normal(size=(8, 16)).astype(np.float32)
    nodes = [
        make.make_node("MatMul", ["images", "weight"], ["rows"], name="linear"),
        make.make_node("Transpose", ["rows"], ["columns"], perm=[0, 1, 3, 2]),
        make.make_node("MatMul", ["rows", "columns"], ["logits"], name="product"),
    ]
    float32 = onnx.TensorProto.FLOAT
    inputs = [make.make_tensor_value_info("images", float32, ["batch", 1, 6, 8])]
    outputs = [make.make_tensor_value_info("logits", float32, ["batch", 1, 6, 6])]
    body = make.make_graph(nodes, "attention", inputs, outputs, [onnx.numpy_helper.from_array(weight, "weight")])
    model = make.make_model(body, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "source.onnx")
    return tmp_path / "source.onnx", weight


def test_products_of_two_activations_stay_in_floating_point(graph, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    source, weight = graph
    images = np.random.default_rng(1).normal(size=(4, 1, 6, 8)).astype(np.float32)
    quantise(source, tmp_path / "int8.onnx", [images], ABOUT)
    nodes = {node.name: node for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    made = {name: node.op_type for node in nodes.values() for name in node.output}
    assert [made[name] for name in nodes["linear"].input] == ["DequantizeLinear"] * 2
    assert "DequantizeLinear" not in [made.get(name) for name in nodes["product"].input[1:]]
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    # 7 of 8 bits.
    eight = next(one for one in stored.values() if one.dtype == np.int8 and one.shape == weight.shape)
    assert np.abs(eight).max() == 64
