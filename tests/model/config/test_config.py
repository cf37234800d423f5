from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from maskformer.config.keys import section_keys
from maskformer.config.load import (
    load_config,
    merge_model_config,
    override_keys,
    parse_config,
    to_yaml,
)
from maskformer.config.recipes import config_names
from maskformer.config.schema import Config, FolderConfig, SemanticAugmentation
from maskformer.config.schema.fields import Section
from maskformer.errors import ConfigError

MINIMAL = {"data": {"format": "shapes"}}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    return file


@pytest.mark.parametrize("name", config_names())
def test_every_recipe_is_valid_and_survives_a_round_trip(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(to_yaml(config))) == config


def test_a_base_is_overridden_key_by_key(tmp_path: Path, recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump({**MINIMAL, "train": {"lr": 0.5, "steps": 7}}))
    child = tmp_path / "child.yaml"
    child.write_text("base: recipe.yaml\ntrain: {steps: 9}\n")
    config = load_config(child)
    assert (config.train.lr, config.train.steps) == (0.5, 9)


@pytest.mark.parametrize("base", ["camvid_r50.yaml", "camvid_r50", "ade20k/r50"])
def test_a_base_may_be_a_recipe_of_the_package(tmp_path: Path, base: str) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(f"base: {base}\ntrain: {{steps: 9}}\n")
    expected = load_config(base.removesuffix(".yaml"), ["train.steps=9"])
    assert load_config(child) == expected


def test_a_file_beside_comes_before_a_recipe_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "camvid.yaml").write_text(yaml.safe_dump({**MINIMAL, "train": {"steps": 7}}))
    child = tmp_path / "child.yaml"
    child.write_text("base: camvid.yaml\n")
    assert load_config(child).train.steps == 7


def test_another_backbone_has_its_own_sizes(tmp_path: Path, recipe: Path) -> None:
    """Sizes belong to the named model; the tag after the dot only names its weights."""
    backbone = {"name": "resnet18.tv_in1k", "options": {"layers": [1, 1, 1, 1]}, "drop_path": 0.1}
    recipe.write_text(yaml.safe_dump({**MINIMAL, "model": {"backbone": backbone}}))
    child = tmp_path / "child.yaml"
    child.write_text("base: recipe.yaml\nmodel: {backbone: {name: swin_tiny_patch4_window7_224}}\n")
    sizes = "model.backbone.options={window_size: 5}"
    for overrides, options in (
        (["model.backbone.name=resnet18"], {"layers": (1, 1, 1, 1)}),
        (["model.backbone.name=resnet34"], {}),
        ([sizes, "model.backbone.name=swin_tiny_patch4_window7_224"], {"window_size": 5}),
    ):
        config = load_config(recipe, overrides).model.backbone
        assert (config.options, config.drop_path) == (options, 0.1)
    config = load_config(child, [sizes]).model.backbone
    assert config.options == {"window_size": 5}
    merged = merge_model_config(load_config(recipe).model, {"backbone": {"name": "resnet34"}})
    assert merged.backbone.options == {}


def test_a_base_that_is_nowhere(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("base: camvid_r5.yaml\n")
    with pytest.raises(ConfigError, match=r"neither the file .*camvid_r5\.yaml.*'camvid_r50'\?"):
        load_config(child)


def test_another_data_format_starts_from_an_empty_section(recipe: Path) -> None:
    recipe.write_text("data: {format: shapes, val_images: 3}\n")
    split = "{images: a, labels: b}"
    overrides = [f"data={{format: folder, root: r, train: {split}, val: {split}}}"]
    assert load_config(recipe, overrides).data.format == "folder"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=0.1", r"train\.lrr: unknown key; did you mean 'train\.lr'\?"),
        ("train.stepz=3", r"train\.stepz: unknown key; did you mean 'train\.steps'\?"),
        ("data.imagesize=3", r"data\.imagesize: unknown key; did you mean 'data\.image_size'\?"),
        (
            "data.augmentation={kind: semantic, cropp: [1, 1]}",
            r"data\.augmentation\.cropp: .*mean 'data\.augmentation\.crop'\?",
        ),
        ("data.augmentation.short_sides=[]", r"short_sides: .*at least 1 item"),
        (
            "data.augmentation={kind: panoptic, short_sides: []}",
            r"short_sides: .*at least 1 item",
        ),
        (
            "data.augmentation={kind: panoptic, crop_short_sides: []}",
            r"crop_short_sides: .*at least 1 item",
        ),
        (
            "data.augmentation={kind: panoptic, crop_range: [600, 384]}",
            r"crop_range must be \[least, largest\], got \[600, 384\]",
        ),
        (
            "model.backbone.nam=x",
            r"model\.backbone\.nam: unknown key; did you mean 'model\.backbone\.name'\?",
        ),
        (
            "data.root=x",
            r"data\.root: unknown key; it belongs to folder, .*; valid here: augmentation,",
        ),
        ("zzz=1", r"zzz: unknown key; valid here: model, criterion, data, train, eval"),
        ("train.steps=many", r"train\.steps: .*valid integer.*'many'"),
        ("train.steps=true", r"train\.steps: expected a number, got true; YAML reads no, off, yes"),
        ("train.lr=no", r"train\.lr: expected a number, got false"),
        ("train.milestones=[2, on]", r"train\.milestones\.1: expected a number, got true"),
        ("model.pixel_mean=0.5", r"model\.pixel_mean: Input should be a valid list, got 0\.5$"),
        ("predict.things=[2024-01-31]", r"things\.0: a name must be text, got 2024-01-31; YAML"),
        ("TRAIN.steps=1", r"TRAIN: unknown key; did you mean 'train'\?$"),
        ("train..steps=1", r"an override must be key=value, got 'train\.\.steps=1'"),
        (".steps=1", r"an override must be key=value, got '\.steps=1'"),
        ("train.steps=1:30", r"train\.steps: .*valid integer.*'1:30'"),
        ("train.lr=1:30.5", r"train\.lr: .*valid number.*'1:30\.5'"),
        ("train.steps=!!int ''", r"train\.steps: .*valid integer"),
        ("train.steps=0x" + "f" * 9999, r"train\.steps: .*got a huge number"),
        ("train.batch_size=0", r"train\.batch_size: .*greater than 0"),
        ("train.lr=.nan", r"train\.lr: "),
        ("train.precision=fp8", r"train\.precision: .*'fp32', 'bf16' or 'fp16'"),
        ("data.format=videos", r"data\.format: .* shapes, folder, coco_panoptic, .*'videos'"),
        ("data.format=folder", r"data\.root: missing"),
        ("train.steps", "key=value"),
    ],
)
def test_wrong_values_are_refused_by_name(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


@pytest.mark.parametrize("given", [None, 5, ["quickstart"]])
def test_a_recipe_is_a_name_or_a_file(given: Any) -> None:
    with pytest.raises(TypeError, match=r"^name_or_file must be a recipe's name or file, got "):
        load_config(given)


def test_overrides_are_a_list_of_texts(recipe: Path) -> None:
    message = r"list of key=value .*got the text 'train\.steps=5'$"
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, "train.steps=5")
    with pytest.raises(ConfigError, match=message):
        override_keys("train.steps=5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"recipe\.yaml must hold sections such as data: and train:, got an empty file$"),
        ("# only comments\n", r"got an empty file$"),
        ("- a\n", r"recipe\.yaml must hold sections .*, got \['a'\]$"),
        ("train.steps: 5\n", r"train\.steps: unknown key; in a file, steps is a key below train:"),
        ("train.stepz: 5\n", r"train\.stepz: unknown key; did you mean"),
        ("train.: 5\n", r"train\.: unknown key; did you mean 'train'"),
        ("train: {lr.x: 3}\n", r"train\.lr\.x: unknown key; did you mean 'train\.lr'"),
        ("train: {seed: 2024-01-31}\n", r"train\.seed: .*, got 2024-01-31$"),
    ],
)
def test_a_file_without_sections_says_what_they_are(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(recipe)


def test_a_file_that_is_no_text_is_named_once(recipe: Path) -> None:
    recipe.write_bytes("data: {}".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"^config: \S+ is damaged: ") as caught:
        load_config(recipe)
    assert str(caught.value).count(str(recipe)) == 1


def test_an_unknown_recipe_names_the_nearest(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'quickstart'\?$"):
        load_config("quikstart")
    with pytest.raises(ConfigError, match=r"named 'zzz'; maskformer info lists the recipes$"):
        load_config("zzz")
    with pytest.raises(ConfigError, match=r"expected a recipe's name or file, got an empty text"):
        load_config("")
    monkeypatch.chdir(recipe.parent)
    with pytest.raises(ConfigError, match=rf"named 'recipe'; did you mean '{recipe.name}'\?$"):
        load_config("recipe")
    recipe.write_text("base: _smal\n")
    with pytest.raises(ConfigError, match=r"recipe of the package; did you mean '_small'\?$"):
        load_config(recipe)


@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "base: nowhere.yaml\n"])
def test_a_damaged_file_is_named(recipe: Path, text: str) -> None:
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_config(recipe)


def test_an_augmentation_without_a_kind_is_semantic(recipe: Path) -> None:
    config = load_config(recipe, ["data.augmentation.crop=[64, 32]"])
    assert config.data.augmentation.kind == "semantic"
    recipe.write_text("data: {format: shapes, augmentation: {crop: [64, 32]}}\n")
    assert load_config(recipe) == config
    assert load_config(recipe, ["data.augmentation.kind=semantic"]) == config
    other = load_config(recipe, ["data.augmentation.kind=panoptic"]).data.augmentation
    assert other.kind == "panoptic"


def test_overrides_come_in_any_order(recipe: Path) -> None:
    kind, sides = "data.augmentation.kind=panoptic", "data.augmentation.short_sides=[64]"
    after = load_config(recipe, [kind, sides])
    assert after.data.augmentation.short_sides == (64,)
    assert load_config(recipe, [sides, kind]) == after
    with pytest.raises(ConfigError, match=r"augmentation\.crop: unknown key; it belongs to sem"):
        load_config(recipe, ["data.augmentation.crop=[64, 32]", kind])


def test_one_number_is_a_square(recipe: Path) -> None:
    augmentation = load_config(recipe, ["data.augmentation.crop=64"]).data.augmentation
    assert isinstance(augmentation, SemanticAugmentation)
    assert augmentation.crop == (64, 64)
    with pytest.raises(ConfigError, match=r"data\.augmentation\.crop: .*got True"):
        load_config(recipe, ["data.augmentation.crop=true"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "model.backbone=resnet34",
            r"a section with the keys model\.backbone\.name etc\., got 'resnet34'",
        ),
        ("train=5", r"train: expected a section with the keys train\.steps etc\., got 5"),
        ("data=7", r"data: expected a section, got 7"),
    ],
)
def test_a_section_is_no_value(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(recipe, [override])


@pytest.mark.parametrize("value", ["20%", "images"])
@pytest.mark.parametrize("form", ["folder", "coco_panoptic", "coco_instances"])
def test_a_split_is_a_section(form: str, value: str) -> None:
    data = {"format": form, "root": "x", "train": value, "val": value}
    section = r"expected a section with the keys data\.{}\.images etc\."
    train, val = map(section.format, ("train", "val"))
    said = f"data.train: {train}, got '{value}'; data.val: {val}, or a fraction such as 0.1, got"
    with pytest.raises(ConfigError, match=said):
        parse_config({"data": data})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {root: x}", r"data\.format: expected one of .*folder.*; it is missing$"),
        ("data: {formt: folder}", r"; it is missing, and formt is an unknown key$"),
        ("data: {format: fodler}", r"data\.format: .*, got 'fodler'; did you mean 'folder'\?$"),
        (
            "data: {format: shapes, augmentation: {kind: 7}}",
            r"data\.augmentation\.kind: .*got '7'$",
        ),
    ],
)
def test_which_section_is_open(recipe: Path, text: str, said: str) -> None:
    recipe.write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(recipe)


def test_one_of_two_ways_replaces_the_other(recipe: Path) -> None:
    recipe.write_text("data: {format: shapes, value_range: [0, 9]}\n")
    data = load_config(recipe, ["data.percentiles=[2, 98]"]).data
    assert (data.value_range, data.percentiles) == (None, (2, 98))
    with pytest.raises(ConfigError, match="both given"):
        load_config(recipe, ["data.percentiles=[2, 98]", "data.value_range=[0, 1]"])


def test_a_file_that_is_not_there(recipe: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"named '.*/recip\.yaml'; did you mean '.*/recipe\.yaml'"
    ):
        load_config(recipe.with_name("recip.yaml"))
    with pytest.raises(ConfigError, match=r"named '.*\.yml'; maskformer init FOLDER writes one"):
        load_config(recipe.parent / "other" / "mine.yml")
    with pytest.raises(ConfigError, match=r"is a folder, .*; maskformer init .* writes a recipe"):
        load_config(recipe.parent)


def test_a_recipe_cannot_be_its_own_base(recipe: Path) -> None:
    recipe.write_text("base: other.yaml\n")
    (recipe.parent / "other.yaml").write_text(f"base: {recipe.name}\n")
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_config(recipe)


def test_numbers_may_be_written_in_any_yaml_form(recipe: Path) -> None:
    assert load_config(recipe, ["train.lr=1e-4"]).train.lr == 1e-4
    for text, value in (("010", 10), ("0_10", 10), ("0x10", 16), ("1_000", 1000), ("'12'", 12)):
        assert load_config(recipe, [f"train.steps={text}"]).train.steps == value
    size = load_config(recipe, ["data.image_size=010"]).data.image_size
    assert size == load_config(recipe, ["data.image_size=10"]).data.image_size


def test_model_overrides_merge_into_sections() -> None:
    model = Config.model_validate(MINIMAL).model
    changed = merge_model_config(model, {"num_classes": 3, "decoder": {"queries": 5}})
    assert (changed.num_classes, changed.decoder.queries, changed.decoder.heads) == (3, 5, 8)
    with pytest.raises(ConfigError, match=r"decoder\.querys: .*'decoder\.queries'"):
        merge_model_config(model, {"decoder": {"querys": 5}})
    with pytest.raises(ConfigError, match="data: unknown key; valid here: architecture, "):
        merge_model_config(model, {"data": 3})


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def test_an_empty_text_is_no_path() -> None:
    found = [
        (section, key.name)
        for section in sections()
        for key in section_keys(section)
        if "path" in key.type
    ]
    assert {"root", "images", "list", "annotations", "classes", "weights", "log_folder"} <= {
        name for _, name in found
    }
    for section, name in found:
        with pytest.raises(ValidationError) as info:
            section.model_validate({name: ""})
        messages = [e["msg"] for e in info.value.errors() if e["loc"][0] == name]
        assert any("expected a path, got an empty text" in message for message in messages), name


@pytest.mark.parametrize(
    ("given", "meant"),
    [("png", ".png"), (".png", ".png"), ("PNG", ".PNG"), ("_mask.png", "_mask.png"), ("*", "*")],
)
def test_a_suffix_without_its_dot(given: str, meant: str) -> None:
    folders = {"images": "a", "labels": "b"}
    data = {"format": "folder", "root": ".", "train": folders, "val": 0.1}
    data |= {"label_suffix": given, "image_suffix": ["x.jpg", given]}
    section = parse_config({"data": data}).data
    assert isinstance(section, FolderConfig)
    assert (section.label_suffix, section.image_suffix) == (meant, ("x.jpg", meant))


def test_a_data_root_may_start_at_home() -> None:
    config = load_config("camvid", ["data.root=~/camvid"])
    assert config.data.root == Path.home() / "camvid"


class TestOtherClasses:
    """What a base says per class does not fit a recipe with other classes."""

    def test_colors_things_and_count_are_left_behind(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text("base: camvid\ndata: {classes: [a, b, c], label_offset: 1}\n")
        config = load_config(file)
        assert isinstance(config.data, FolderConfig)
        assert config.data.classes == ("a", "b", "c")
        assert config.data.colors is None
        assert config.data.things == ()
        assert config.model.num_classes is None

    def test_raw_values_of_the_old_labels_are_left_behind(self, tmp_path: Path) -> None:
        """Void of other labels would otherwise leave out a class without a word."""
        for base, given, offset, ignore in (
            ("camvid", "classes: [a, b]", 0, (255,)),
            ("ade20k/r50", "classes: [a, b]", 0, (255,)),
            ("ade20k/r50", "classes: [a, b], ignore: 7, label_offset: 1", 1, (7,)),
            ("camvid", "root: mine", 0, (11,)),
            ("camvid", "label_map: {0: a, 1: b, 2: b}", 0, (11,)),  # raw values of these labels
            ("camvid", "label_map: {0: a, 1: b, 2: b}, classes: [b, a]", 0, (11,)),
        ):
            file = tmp_path / "mine.yaml"
            file.write_text(f"base: {base}\ndata: {{{given}}}\n")
            data = load_config(file).data
            assert isinstance(data, FolderConfig)
            assert (data.label_offset, data.ignore) == (offset, ignore)

    @pytest.mark.parametrize(
        ("label_map", "classes", "names"),
        [
            ("{0: sky, 1: rest, '*': null}", None, 11),
            ("{car: vehicle, '*': null}", None, 11),
            ("{8: car, '*': ignore}", None, 11),
            ("{8: 0, '*': null}", 11, None),  # numbers count in the list
            ("{'*': null}", 11, None),
        ],
    )
    def test_a_map_of_other_classes(
        self, label_map: str, classes: int | None, names: int | None
    ) -> None:
        """The base's classes become the names of what is mapped."""
        data = load_config("camvid", [f"data.label_map={label_map}"]).data
        assert isinstance(data, FolderConfig)
        assert (data.classes and len(data.classes)) == classes  # type: ignore[arg-type]
        assert (data.label_names and len(data.label_names)) == names  # type: ignore[arg-type]

    def test_a_map_in_place_of_a_map(self, tmp_path: Path) -> None:
        (tmp_path / "base.yaml").write_text(
            "base: camvid\ndata: {classes: [a, b], label_map: {0: a, '*': b}}\n"
        )
        (tmp_path / "mine.yaml").write_text("base: base.yaml\ndata: {label_map: {0: c, 1: b}}\n")
        data = load_config(tmp_path / "mine.yaml").data
        assert isinstance(data, FolderConfig)
        assert (data.classes, data.label_map) == (None, {0: "c", 1: "b"})
        assert data.label_names is None  # nobody said how the raw values are called
        data = load_config(tmp_path / "base.yaml", ["data.label_map={0: b, 1: a}"]).data
        assert isinstance(data, FolderConfig)
        assert data.classes == ("a", "b")

    def test_overrides_in_any_order(self) -> None:
        colors = "data.colors=[[1, 2, 3], [4, 5, 6]]"
        for overrides in ((colors, "data.classes=[a, b]"), ("data.classes=[a, b]", colors)):
            config = load_config("camvid", overrides)
            assert isinstance(config.data, FolderConfig)
            assert config.data.colors == ((1, 2, 3), (4, 5, 6))

    def test_the_same_classes_keep_all(self) -> None:
        base = load_config("camvid")
        assert isinstance(base.data, FolderConfig)
        assert base.data.classes is not None
        same = load_config("camvid", [f"data.classes={list(base.data.classes)}"])
        assert same == base
