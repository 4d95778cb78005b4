"""An exported ONNX file, run by onnxruntime. No torch."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crossdistill.config.validation import validated
from crossdistill.data.preprocessing import Preprocessing
from crossdistill.errors import UserError, first_line
from crossdistill.export.about import METADATA, About, require_packages
from crossdistill.files import parse_json

ONNX_FILE, INT8_FILE = "student.onnx", "student-int8.onnx"


def find_onnx(model: str) -> Path | None:
    """Return the ONNX file that a path names: itself, or that of an exported folder; None for anything else."""
    path = Path(model)
    if path.suffix == ".onnx" and not path.is_dir():
        return path
    return path / ONNX_FILE if (path / ONNX_FILE).is_file() else None


class OnnxModel:
    """A model that answers for images. Raises UserError for a file that is damaged, or was not exported by us."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        require_packages(f"running {str(path)!r}", "onnxruntime")
        import onnxruntime as ort

        if not path.is_file():
            raise UserError(f"{str(path)!r} does not exist")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own errors for each way in which a file can be wrong
            raise UserError(f"{str(path)!r} cannot be read as an ONNX model: {first_line(error)}") from error
        self.about = _read_about(self._session.get_modelmeta().custom_metadata_map, str(path))
        self._input = self._session.get_inputs()[0].name
        self.outputs = [output.name for output in self._session.get_outputs()]
        if "embedding" not in self.outputs or ("logits" in self.outputs) != bool(self.class_names):
            raise UserError(
                f"{str(path)!r} is damaged: it names {len(self.class_names)} classes, and its outputs are "
                f"{', '.join(self.outputs)}"
            )

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return tuple(self.about.class_names)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes an input."""
        return self.about.preprocessing

    def prepare(self, image: Image.Image) -> Any:
        """Return an image, as `read_picture` decodes it, as an input of `run`."""
        return self.preprocessing.pixels(image) if self.about.input == "image" else self.preprocessing(image)

    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return logits (B, K), or None without a classifier, and embeddings (B, D) for prepared images."""
        if self.about.input == "image":
            # The images of a batch have several sizes.
            answers = [self.call(one[None]) for one in inputs]
            outputs = {name: np.concatenate([one[name] for one in answers]) for name in self.outputs}
        else:
            outputs = self.call(np.stack(inputs))
        return outputs.get("logits"), outputs["embedding"]

    def call(self, batch: Any) -> dict[str, Any]:
        """Run one batch of inputs, and return the outputs by name. Raises UserError where the graph refuses them."""
        try:
            answers = self._session.run(self.outputs, {self._input: batch})
        except Exception as error:  # onnxruntime has its own errors
            raise UserError(
                f"the ONNX model cannot be run on an input of {' x '.join(map(str, batch.shape))}: {first_line(error)}"
            ) from error
        return dict(zip(self.outputs, answers, strict=True))


def _read_about(metadata: dict[str, str], path: str) -> About:
    if METADATA not in metadata:
        raise UserError(f"{path!r} does not say how images are prepared for it; give a file of `crossdistill export`")
    try:
        stored = parse_json(metadata[METADATA])
    except ValueError as error:
        raise UserError(f"{path!r} is damaged: its metadata is not JSON") from error
    about: About = validated(About, stored, f"{path!r}: its metadata is damaged: ")
    return about
