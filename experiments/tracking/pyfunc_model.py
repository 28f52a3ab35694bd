"""The registered model as MLflow loads it. MLflow copies this file: it needs the export folder and nothing of ours."""

import base64
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class PhotoClassifier(PythonModel):
    """Takes a column `image` of bytes or base64; answers with label, score and all scores by class name."""

    def load_context(self, context: Any) -> None:
        """Load the export with the code that came with it."""
        export = Path(context.artifacts["export"])
        spec = importlib.util.spec_from_file_location("export_inference", export / "code" / "inference.py")
        assert spec is not None and spec.loader is not None
        self.inference = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self.inference  # dataclasses look their module up
        spec.loader.exec_module(self.inference)
        self.model = self.inference.load_export(export)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Score a data frame of photos."""
        del context, params
        images = [self.inference.decode_image(_image_bytes(one)) for one in model_input["image"]]
        rows = self.model.score(images).double().softmax(dim=1).tolist()
        names = self.model.class_names
        best = [max(range(len(row)), key=row.__getitem__) for row in rows]
        return pd.DataFrame(
            {
                "label": [names[index] for index in best],
                "score": [row[index] for row, index in zip(rows, best, strict=True)],
                "scores": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )


def _image_bytes(image: bytes | str) -> bytes:
    """Bytes as they are, or base64 as MLflow's REST server passes bytes on. Never a path: it would name a file here.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    try:
        return base64.b64decode("".join(image.split()), validate=True)
    except (ValueError, AttributeError) as error:
        raise ValueError("image must be the bytes of a photo, or base64 of them; a path is never read") from error


set_model(PhotoClassifier())
