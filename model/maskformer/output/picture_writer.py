"""Writing pictures of predictions, and a list of their images."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from torch import Tensor

from maskformer.config.schema import Config
from maskformer.data import DatasetInfo
from maskformer.inference.prediction import Prediction
from maskformer.output.pictures import overlay_with_legend, save_picture
from maskformer.system.text import encodable
from maskformer.system.writing import write_json

PNG_PIXELS = 4_000_000
"""With `picture_format: auto`, larger pictures are not PNGs, which would take tens of megabytes for
a photo.
"""
LONGEST_SIDE = {"jpg": 65_535, "webp": 16_383}
"""The largest side that these formats support, in pixels."""


def draw_prediction(
    image: Tensor, prediction: Prediction, info: DatasetInfo, config: Config
) -> Tensor:
    """Draw a prediction over its image, above a legend, `[3, H', W']` uint8.

    Args:
        image: `[C, H, W]` uint8.
        prediction: in the size of the image.
        info, config: as in `PictureWriter`.

    Raises:
        ValueError: the sizes differ.
    """
    segmentation = prediction.segmentation(config.eval.object_mask_threshold)
    return overlay_with_legend(image, segmentation, info, opacity=config.predict.opacity)


class PictureWriter:
    """Writes overlays. It is a context manager, which writes `files.json` at its end.

        NAME.png, .jpg or .webp   the image under the colours of its segments, over a legend
        files.json                `file` (the image's path), `name` and `picture` of each

    Args:
        folder: the output folder, which is created if necessary.
        info: the classes of the predictions.
        config: `predict` determines the look of the pictures, `eval.object_mask_threshold` which
            instances are drawn.
    """

    def __init__(self, folder: Path, info: DatasetInfo, config: Config) -> None:
        self.folder = folder
        self.info = info
        self.config = config
        self._files: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the list, also after an interruption; it lists complete pictures only."""
        if self._files:
            write_json(self.folder / "files.json", self._files, indent=1)

    def write(self, name: str, file: Path, image: Tensor, prediction: Prediction) -> dict[str, str]:
        """Draw a prediction and write the picture. May be called in several threads.

        Args:
            name: the name of the picture, without suffix.
            file: the file of the image.
            image: `[3, H, W]` uint8.
            prediction: the prediction, in the size of the image.

        Returns:
            The entry for `collect`.

        Raises:
            OSError: the folder cannot be written.
        """
        picture = draw_prediction(image, prediction, self.info, self.config)
        picture_file = f"{name}.{self._suffix(picture)}"
        save_picture(picture, self.folder / picture_file)
        return {"file": encodable(str(file)), "name": name, "picture": picture_file}

    def possible_names(self, name: str) -> list[str]:
        """Return the possible file names of a picture, of which its size determines one."""
        wanted: str = self.config.predict.picture_format
        suffixes = {"png", "jpg" if wanted == "auto" else wanted}
        return [f"{name}.{suffix}" for suffix in sorted(suffixes)]

    def collect(self, entry: dict[str, str]) -> None:
        """Add a picture that `write` has written to `files.json`."""
        self._files.append(entry)

    def _suffix(self, picture: Tensor) -> str:
        height, width = picture.shape[-2:]
        wanted: str = self.config.predict.picture_format
        if wanted == "auto":
            wanted = "png" if height * width <= PNG_PIXELS else "jpg"
        return wanted if max(height, width) <= LONGEST_SIDE.get(wanted, 1 << 30) else "png"
