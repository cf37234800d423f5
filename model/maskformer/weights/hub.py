"""The Hugging Face hub, asked whether it is there before a library tries five times."""

from __future__ import annotations

from collections.abc import Sequence

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from maskformer.errors import HubError

PATIENCE = 3
"""Seconds to wait for an answer."""


def check_hub(model_id: str, files: Sequence[str]) -> None:
    """Makes sure that files can come from the local cache or that the hub answers.

    Args:
        model_id: `owner/name`, with `@revision` if need be.
        files: of which any will do.

    Raises:
        HubError: none of them is in the cache, and the hub cannot be reached.
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
        huggingface_hub.get_hf_file_metadata(url, timeout=PATIENCE)
    except HfHubHTTPError:
        pass  # it answers; what is wrong with the file shows when it is fetched
    except Exception as error:  # of several HTTP libraries
        raise HubError(
            f"'{name}' is not in the local cache, and the Hugging Face hub cannot be reached: "
            f"{error}"
        ) from error
