"""Suggestions for keys of the recipe that are given as options, such as `--lr`."""

from __future__ import annotations

import difflib

from maskformer.config.synonyms import keys, meant_key


def overrides_for(option: str, value: str) -> list[str]:
    """Convert an option that is a key of the recipe to overrides.

    Args:
        option: the option as it was given, such as `--batch-size`.
        value: its value.

    Returns:
        Overrides such as `train.batch_size=8`, one for each section that has the key.
    """
    wanted = option.lstrip("-").replace("-", "_").lower()
    known = list(dict.fromkeys(keys(sections=False)))
    found = [key for key in known if wanted in (key, key.rpartition(".")[2])]
    if not found and meant_key(wanted.split(".")) in known:
        found = [str(meant_key(wanted.split(".")))]
    if not found:
        names = [key.rpartition(".")[2] for key in known]
        close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.75)
        found = [key for key in known if key.rpartition(".")[2] in close]
    return [f"{key}={value or '...'}" for key in found]
