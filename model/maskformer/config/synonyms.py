"""Names of recipe keys in other programs, to suggest the right key for an unknown one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from maskformer.config.schema import Config

SYNONYMS = {
    "model.architecture": "model.arch model.type model.meta_architecture",
    "model.num_classes": "n_classes nclasses class_count number_of_classes classes_count",
    "model.backbone.name": "model.backbone.type backbone.model encoder encoder_name backbone_name",
    "model.backbone.pretrained": "imagenet pretrained_backbone use_pretrained imagenet_weights",
    "model.backbone.weights": "backbone.checkpoint backbone.init_cfg pretrained_path",
    "model.backbone.drop_path": "drop_path_rate stochastic_depth",
    "model.backbone.frozen_norm": "norm_eval frozen_bn freeze_bn freeze_norm sync_bn",
    "model.decoder.queries": "num_queries num_object_queries n_queries",
    "model.decoder.heads": "num_heads nheads n_heads",
    "model.decoder.layers": "dec_layers decoder_layers num_decoder_layers",
    "model.decoder.feedforward": "dim_feedforward ffn_dim feedforward_dim",
    "model.decoder.channels": "hidden_dim embed_dim d_model",
    "model.pixel_decoder.encoder_layers": "enc_layers num_encoder_layers",
    "model.pixel_mean": "mean image_mean img_mean",
    "model.pixel_std": "std image_std img_std",
    "criterion.class_weights": "class_weights loss_weights ce_weights weights_per_class "
    "label_weights criterion.weight criterion.weights",
    "criterion.no_object_weight": "eos_coef no_object_coef background_weight",
    "criterion.class_weight": "ce_weight class_loss_weight loss_ce_weight",
    "criterion.mask_weight": "focal_weight mask_loss_weight loss_mask_weight",
    "criterion.dice_weight": "dice_loss_weight loss_dice_weight",
    "data.root": "data_root dataset_root root_dir data_dir data_path dataset_path",
    "data.classes": "class_names names label_names labels_names id2label categories_list",
    "data.colors": "palette colours colormap",
    "data.ignore": "ignore_index ignore_label ignore_value void void_label",
    "data.label_offset": "reduce_zero_label reduce_labels do_reduce_labels",
    "data.format": "dataset dataset_type dataset_format data.type",
    "data.things": "thing_classes isthing thing_names",
    "data.train": "data.training train_data train_dataset",
    "data.val": "data.validation data.valid data.test val_data val_dataset val_fraction val_split "
    "val_ratio validation_split data.val.fraction data.val.share data.val.split",
    "data.channels": "bands in_channels in_chans num_channels input_channels n_channels",
    "data.augmentation": "transforms transform augment augmentations aug data_augmentation",
    "data.augmentation.crop": "img_size image_size input_size crop_size imgsz resolution data.size",
    "data.augmentation.flip": "hflip random_flip horizontal_flip fliplr",
    "data.augmentation.color": "color_jitter color_aug photometric_distortion colour",
    "data.augmentation.short_sides": "scales min_size_train resize",
    "data.augmentation.max_side": "max_size_train",
    "data.test_short_side": "min_size_test test_size val_size",
    "data.test_max_side": "max_size_test",
    "train.steps": "max_iter max_iters iterations num_iterations iters max_steps num_steps "
    "total_steps",
    "train.epochs": "num_epochs max_epochs n_epochs num_train_epochs",
    "train.batch_size": "batch bs ims_per_batch samples_per_gpu images_per_batch train_batch_size "
    "per_device_train_batch_size",
    "train.accumulate": "accumulation accumulation_steps grad_accum accumulate_grad_batches "
    "gradient_accumulation gradient_accumulation_steps",
    "train.lr": "learning_rate base_lr lr0 learningrate initial_lr",
    "train.weight_decay": "wd l2 decay",
    "train.backbone_lr_multiplier": "backbone_multiplier backbone_lr lr_mult backbone_lr_mult",
    "train.clip_norm": "clip_grad grad_clip max_norm clip gradient_clip_val max_grad_norm "
    "clip_gradients clip_grad_norm",
    "train.schedule": "scheduler lr_scheduler lr_schedule lr_policy lr_scheduler_type",
    "train.poly_power": "power",
    "train.milestones": "lr_steps step_size decay_steps",
    "train.milestone_factor": "lr_gamma step_gamma train.gamma",
    "train.warmup_steps": "warmup warmup_iters warmup_epochs warm_up",
    "train.freeze": "frozen freeze_backbone frozen_stages freeze_at backbone.freeze frozen_layers "
    "freeze_encoder freeze_layers trainable requires_grad frozen_parts",
    "train.ema": "model_ema ema_decay use_ema exponential_moving_average averaging swa",
    "train.precision": "amp fp16 bf16 mixed_precision use_amp half autocast dtype",
    "train.memory_format": "channels_last nhwc layout",
    "train.compile": "torch_compile inductor",
    "train.shard": "fsdp fsdp2 fully_shard zero zero_stage",
    "train.workers": "num_workers n_workers dataloader_num_workers workers_per_gpu",
    "train.seed": "random_seed manual_seed",
    "train.log_every": "log_interval log_period logging_steps print_freq log_freq",
    "train.evaluate_every": "eval_period eval_every eval_interval eval_steps val_interval "
    "validate_every check_val_every_n_epoch",
    "train.checkpoint_every": "save_every save_steps save_interval checkpoint_period "
    "checkpoint_interval",
    "train.keep": "save_total_limit keep_checkpoints max_keep max_keep_ckpts keep_n save_top_k "
    "max_to_keep",
    "train.best_metric": "monitor metric_for_best_model save_best metric",
    "train.patience": "early_stopping early_stop early_stopping_patience",
    "train.trackers": "tracker logger loggers wandb tensorboard report_to log_with mlflow",
    "train.log_folder": "log_dir logdir logging_dir tensorboard_dir",
    "eval.batch_size": "val_batch_size eval_batch_size test_batch_size",
    "eval.object_mask_threshold": "threshold score_threshold score_thresh confidence conf "
    "mask_threshold",
    "eval.overlap_threshold": "overlap overlap_thr overlap_mask_area_threshold",
    "eval.pictures": "num_pictures visualize visualise vis images_to_draw",
    "eval.tta": "test_time_augmentation aug_test",
}
"""Keys and their names in other programs. A name may be preceded by sections; without them, it
matches in any section.
"""
OPTIONS = {
    "--output FOLDER": "output out output_dir out_dir save_dir work_dir workdir run_dir",
    "--resume": "resume resume_from resume_from_checkpoint auto_resume",
    "--weights PATH": "load_from pretrained_weights init_from finetune finetune_from",
    "--cpu (train) or --device (evaluate, predict)": "device cuda use_cuda use_gpu accelerator",
    "torchrun --nproc-per-node N -m maskformer train": "gpus num_gpus n_gpus ngpus gpu devices "
    "world_size num_processes",
}
"""Options of the command line that are not keys of a recipe, and their names in other programs."""


def meant_key(path: Sequence[str]) -> str | None:
    """Return the key that an unknown key means: a synonym, or the same name in another section.

    Args:
        path: the parts of the unknown key, such as `["model", "backbone", "frozen"]`.
    """
    words = [part.lower().replace("-", "_") for part in path]
    suffixes = (".".join(words[start:]) for start in range(len(words)))
    return next((_KEYS[name] for name in suffixes if name in _KEYS), None)


def meant_option(name: str) -> str | None:
    """Return the option of the command line that an unknown key means, or None."""
    return _OPTIONS.get(name.lower().replace("-", "_"))


def keys_called(name: str) -> list[str]:
    """Return all dotted keys with this last part."""
    return sorted({key for key in keys() if key.rpartition(".")[2] == name})


def keys(kind: Any = Config, prefix: str = "", *, sections: bool = True) -> Iterator[str]:
    """Yield all dotted keys of a recipe, for all variants of its sections.

    Args:
        kind: the section, or an annotation with sections in it.
        prefix: the key of the section, with a dot at its end.
        sections: also yield the keys whose values are sections.
    """
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            inner = list(keys(field.annotation, f"{prefix}{name}.", sections=sections))
            if sections or not inner:
                yield prefix + name
            yield from inner
    else:
        for part in get_args(kind):
            yield from keys(part, prefix, sections=sections)


_NAMES = Counter(key.rpartition(".")[2] for key in set(keys()))
_KEYS = {
    **{key.rpartition(".")[2]: key for key in keys() if _NAMES[key.rpartition(".")[2]] == 1},
    **{name: key for key, names in SYNONYMS.items() for name in names.split()},
}
_OPTIONS = {name: option for option, names in OPTIONS.items() for name in names.split()}
