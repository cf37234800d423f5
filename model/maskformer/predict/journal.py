"""A journal of the images that `maskformer predict` has finished, to continue interrupted runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple

from pydantic import BaseModel, ValidationError

from maskformer.errors import UsageError
from maskformer.output.result_writer import Result
from maskformer.predictor import Predictor
from maskformer.system.listing import PREDICTIONS
from maskformer.system.reading import JSON_LIMIT, read_regular
from maskformer.system.text import encodable, escape
from maskformer.system.writing import write_text

NAME = PREDICTIONS
"""Start of the names of journal files: JSON lines with the settings, then one entry per image."""


class Task(NamedTuple):
    """An image to predict, with the name and the id for its results."""

    number: int
    file: Path
    name: str
    image_id: int | str


class Entry(BaseModel):
    """A finished image."""

    image: tuple[str, int, int]
    """The result of `describe_image`."""
    picture: dict[str, str]
    """Its entry in `files.json`."""
    result: Result

    @property
    def name(self) -> str:
        return self.picture["name"]


class _Header(BaseModel):
    settings: str


def describe_image(file: Path) -> tuple[str, int, int]:
    """Return path, size in bytes and modification time, which tell whether an image has changed."""
    try:
        status = file.stat()
    except OSError:  # removed since it was read
        return encodable(str(file)), -1, -1
    return encodable(str(file)), status.st_size, status.st_mtime_ns


def describe_settings(predictor: Predictor) -> str:
    """Return a hash of everything that affects the prediction of an image, such as the weights."""
    digest = blake2b(digest_size=16)
    config = predictor.config
    evaluation = config.eval.model_dump_json(exclude={"batch_size"})
    sections = (config.model, config.data, config.predict)
    texts = [predictor.mode, str(predictor.tta), repr(sorted(predictor.info.things)), evaluation]
    info = predictor.info
    texts.append(repr((info.classes, info.colors, info.category_ids)))
    for text in (*texts, *(section.model_dump_json() for section in sections)):
        digest.update(text.encode(errors="surrogatepass"))
    for values in predictor.model.state_dict().values():
        digest.update(values.detach().cpu().contiguous().reshape(-1).numpy())
    return digest.hexdigest()


class Journal:
    """The finished images in an output folder. Each process writes its own journal file.

    Args:
        folder: the folder of the results.
        settings: the result of `describe_settings`.
        rank: the rank of this process.
    """

    def __init__(self, folder: Path, settings: str, rank: int = 0) -> None:
        self._folder = folder
        self._header = _Header(settings=settings)
        self._rank = rank
        self._stream: IO[str] | None = None

    def read(self) -> list[Entry]:
        """Read the entries of all processes. The incomplete last line of a killed process is
        ignored.

        Raises:
            UsageError: entries were made with other settings.
        """
        if self.holds_others():
            raise UsageError(
                f"{escape(self._folder)} holds results of another model, mode or recipe, which "
                "--skip-existing would mix with new ones: choose another --output, or omit "
                "--skip-existing to predict all images again"
            )
        entries: list[Entry] = []
        for _, lines in self._contents():
            for line in lines:
                try:
                    entries.append(Entry.model_validate_json(line))
                except ValidationError:
                    continue
        return entries

    def holds_others(self) -> bool:
        """Whether the folder has results of an earlier call with other settings."""
        own = self._header.model_dump_json()
        return any(header != own and any(lines) for header, lines in self._contents())

    def exists(self) -> bool:
        """Whether the folder has a journal."""
        return bool(self._files())

    def start(self) -> None:
        """Create the journal file before the first result is written."""
        if self._stream is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"{NAME}-{self._rank}.jsonl"
            self._stream = file.open("x", encoding="utf-8")
            self._write(self._header)

    def add(self, entry: Entry) -> None:
        """Add an image whose result files are complete."""
        self._write(entry)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def replace(self, entries: Iterable[Entry]) -> None:
        """Replace the journal files of all processes, if any, by one with these entries."""
        lines = [entry.model_dump_json() for entry in entries]
        merged, found = self._folder / f"{NAME}.jsonl", self._files()
        if lines or found:
            write_text(merged, "\n".join([self._header.model_dump_json(), *lines, ""]))
        for file in found:
            if file != merged:
                file.unlink()

    def _contents(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the header and the other lines of each file."""
        for file in sorted(self._files()):
            header, *lines = read_regular(file, JSON_LIMIT).decode(errors="replace").split("\n")
            yield header, lines

    def _files(self) -> list[Path]:
        return list(self._folder.glob(f"{NAME}*.jsonl"))

    def _write(self, line: BaseModel) -> None:
        assert self._stream is not None
        self._stream.write(line.model_dump_json() + "\n")
        self._stream.flush()
