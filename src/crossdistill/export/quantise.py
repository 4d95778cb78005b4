"""An ONNX model with 8-bit weights and activations, by onnxruntime's static quantisation."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError, kind_and_line
from crossdistill.export.about import METADATA, About

_OPERATORS = ["Conv", "Gemm", "MatMul"]
"""What is quantised: nearly all of the work. Norms, softmax and additions stay in floating point, and products of two
activations, whose ranges are too wide for 8 bits in linear attention (their inputs may have been rounded)."""


def quantise(source: Path, target: Path, calibration: Iterable[Any], about: About) -> None:
    """Write `source` with 8-bit weights (by channel) and activations, whose ranges are those of `calibration`.

    Weights use 7 of the 8 bits: CPUs without VNNI add products of 8 bits in 16 bits, which overflows silently.
    `calibration` yields batches (B, C, H, W) of preprocessed images. Raises UserError for a model that cannot be
    quantised.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    prepared = source.with_name("prepared.onnx")
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            nodes_to_exclude=_products(onnx.load(str(prepared)).graph),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:  # the quantiser raises many kinds
        raise UserError(f"the model cannot be quantised ({kind_and_line(error)}); leave --int8 out") from error
    finally:
        logging.disable(before)
        prepared.unlink(missing_ok=True)
    model = onnx.load(str(target))
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: json.dumps(asdict(about))})
    onnx.save(model, str(target))


def _products(graph: Any) -> list[str]:
    """Return the names of the products of two activations; one without a name would stand for all such nodes."""
    weights = {one.name for one in graph.initializer}
    found = [one.name for one in graph.node if one.op_type == "MatMul" and not weights & set(one.input)]
    return [name for name in found if name]
