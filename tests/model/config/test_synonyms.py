from __future__ import annotations

import pytest

from maskformer.config.load import load_config
from maskformer.config.synonyms import OPTIONS, SYNONYMS, keys, meant_key
from maskformer.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.backbone.frozen=true", "train.freeze"),
        ("model.backbone.frozen_stages=2", "train.freeze"),
        ("train.freeze_backbone=true", "train.freeze"),
        ("freeze_backbone=true", "train.freeze"),
        ("train.learning_rate=0.1", "train.lr"),
        ("learning-rate=0.1", "train.lr"),
        ("train.max_iter=5", "train.steps"),
        ("iterations=5", "train.steps"),
        ("epochs=5", "train.epochs"),
        ("train.num_workers=5", "train.workers"),
        ("train.amp=true", "train.precision"),
        ("model.fp16=true", "train.precision"),
        ("train.batch=5", "train.batch_size"),
        ("data.img_size=512", "data.augmentation.crop"),
        ("data.augmentation.crop_size=512", "data.augmentation.crop"),
        ("model.num_queries=50", "model.decoder.queries"),
        ("criterion.eos_coef=0.1", "criterion.no_object_weight"),
        ("data.ignore_index=255", "data.ignore"),
        ("train.Early_Stopping=3", "train.patience"),
        ("predict.threshold=0.5", "eval.object_mask_threshold"),
        ("data.size=512", "data.augmentation.crop"),
        ("data.val.fraction=0.1", "data.val"),
        ("data.bands=4", "data.channels"),
        # The name of a key in another section.
        ("lr=0.1", "train.lr"),
        ("model.steps=5", "train.steps"),
        ("train.semantic=true", "eval.semantic"),
    ],
)
def test_an_unknown_key_is_answered_by_its_meaning(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf": unknown key; did you mean '{key}'\?"):
        load_config("camvid", [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("device=cpu", r"set on the command line: --cpu \(train\) or --device"),
        ("train.gpus=2", "set on the command line: torchrun --nproc-per-node N"),
        ("train.Output-Dir=x", "set on the command line: --output FOLDER"),
        ("batch_size=4", "did you mean 'eval.batch_size' or 'train.batch_size'"),
    ],
)
def test_what_is_no_key_of_one_section(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f": unknown key; .*{said}"):
        load_config("camvid", [override])


def test_letters_help_where_the_meaning_is_unknown() -> None:
    assert meant_key(["train", "stepz"]) is None
    # More than one section has such a key.
    assert meant_key(["model", "channels"]) is None


def test_every_synonym_leads_to_a_key_and_none_to_two() -> None:
    known = set(keys())
    assert set(SYNONYMS) <= known
    names = [name for words in SYNONYMS.values() for name in words.split()]
    assert len(names) == len(set(names))
    assert not known & set(names)
    options = [name for words in OPTIONS.values() for name in words.split()]
    assert len(options) == len(set(options))
    assert not {meant_key([name]) for name in options} - {None}
