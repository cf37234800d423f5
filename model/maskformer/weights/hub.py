"""A quick check that the Hugging Face hub can be reached, before a library retries five times."""

from __future__ import annotations

from collections.abc import Sequence

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from maskformer.errors import HubError

TIMEOUT = 3
"""Seconds to wait for an answer."""


def check_hub(model_id: str, files: Sequence[str]) -> None:
    """Check that a file of a model is in the local cache, or that the hub can be reached.

    Args:
        model_id: `owner/name`, optionally with `@revision`.
        files: the names of the files, any of which is sufficient.

    Raises:
        HubError: none of the files is in the cache, and the hub cannot be reached.
    """
    name, _, revision = model_id.partition("@")
    if any(
        isinstance(
            huggingface_hub.try_to_load_from_cache(name, file, revision=revision or None), str
        )
        for file in files
    ):
        return
    url = huggingface_hub.hf_hub_url(name, files[0], revision=revision or None)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=TIMEOUT)
    except HfHubHTTPError:
        pass  # the hub answers; an error about the file itself is reported when it is downloaded
    except Exception as error:  # errors of several HTTP libraries
        raise HubError(
            f"'{name}' is not in the local cache, and the Hugging Face hub cannot be reached: "
            f"{error}"
        ) from error
