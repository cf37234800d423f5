"""Result files of several processes that share the images of a data set."""

from __future__ import annotations

from typing import NamedTuple

from accelerate import PartialState

from maskformer.inference.prediction import Prediction
from maskformer.output.result_writer import Result, ResultWriter
from maskformer.system.process_group import gather_in_order


class _Waiting(NamedTuple):
    """An image whose PNGs still have a temporary name."""

    number: str
    name: str
    image_id: int | str
    file_name: str
    result: Result


class SharedResults:
    """Writes results under temporary, numbered names. `finish` renames them as a single process
    would have named them, and the first process writes the lists.

    Args:
        writer: writes into a folder that all processes share.
        processes: the processes, each of which gets every n-th batch of images.
        batch_size: images per batch.
    """

    def __init__(self, writer: ResultWriter, processes: PartialState, batch_size: int) -> None:
        self._writer = writer
        self._batch_size = batch_size
        self._processes = processes
        self._waiting: list[_Waiting] = []

    def add(self, name: str, image_id: int | str, prediction: Prediction, file_name: str) -> None:
        """As `ResultWriter.add`, for the next image of this process."""
        rank, position = self._processes.process_index, len(self._waiting)
        number = f".{rank:04}-{position:08}"  # hidden, so it cannot be the name of an image
        result = self._writer.write(number, prediction)
        self._waiting.append(_Waiting(number, name, image_id, file_name, result))

    def finish(self) -> None:
        """Rename and list all results. Every process must call this after its last image.

        Raises:
            OSError, ValueError: as `ResultWriter.add`.
        """
        mine = {image.number for image in self._waiting}
        for image in gather_in_order(self._waiting, self._batch_size):
            name, image_id = self._writer.take(image.name, image.image_id)
            if image.number in mine:
                self._writer.rename(image.number, name, image.result)
            if self._processes.is_main_process:
                self._writer.collect(name, image_id, image.result, image.file_name)
