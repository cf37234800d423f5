from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
from helpers import integrations_models as huggingface
from helpers.recipes import write_recipe
from helpers.repository import ROOT
from PIL import Image

from maskformer import MaskFormer, Predictor, WeightsMismatchError, load_config
from maskformer.cli import app
from maskformer.data import DatasetInfo, build_dataset, check_dataset
from maskformer.data.palette import palette
from maskformer.data.sample import Split
from maskformer.training.checkpoints.writing import info_to_json
from mfkernels.integrations.transformers import unpatch

README = "README.md"


def snippets(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [README, "docs/benchmarks.md"])
def test_figures_are_the_measured_ones(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "figures")
    tables = importlib.import_module("tables")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.update(page) == text, "run benchmarks/figures/tables.py"
    for name in tables.AT_A_GLANCE:
        assert f"| {name} |" in text


PAGES = [README, *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/results/published.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if path.startswith("https:"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, link


def test_cited_facts_are_there() -> None:
    """Comments cite headings of docs/facts.md, and no document that the repository lacks."""
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "facts.md").read_text(), re.MULTILINE)
    suffixes = (".py", ".h", ".cpp", ".cu")
    for folder in ("mfkernels", "model", "csrc", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix not in suffixes or file == Path(__file__):
                continue
            text = " ".join(file.read_text().replace("#", " ").split())
            assert "facts §" not in text, file
            for cited in re.findall(r"docs/facts\.md, ([\w -]+)", text):
                assert any(cited.startswith(heading) for heading in headings), (file, cited)


def test_the_tests_that_a_page_names_are_there() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\S+)`", (ROOT / "docs/official.md").read_text())
    assert len(named) > 20
    for file, path in named:
        text = (ROOT / file).read_text()
        for name in path.split("::"):
            assert re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE), (file, name)


def test_the_recipe_for_own_data_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = snippets(README, "yaml")
    assert snippets("docs/data.md", "yaml") == [text]
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            folder = Path("datasets/mine", kind, split)
            folder.mkdir(parents=True)
            for number in range(2):
                suffix = "jpg" if kind == "images" else "png"
                Image.new(mode, (64, 48), number if mode == "L" else "gray").save(
                    folder / f"{number}.{suffix}"
                )
    config = load_config("mine.yaml")
    for split in get_args(Split):
        dataset = build_dataset(config.data, split)
        assert len(dataset) == 2
        assert dataset.info.classes == ("background", "cat", "dog")
        assert check_dataset(dataset) == ["1 of 3 classes never occur: dog"]


@pytest.mark.parametrize(
    "line",
    [
        line
        for page in (README, "docs/running.md", "docs/models.md", "docs/research.md")
        for text in snippets(page, "bash")
        for line in text.splitlines()
        if "maskformer " in line
    ],
)
def test_commands_are_read_as_written(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("base: camvid\n")
    words = shlex.split(line, comments=True)
    words = words[words.index("maskformer") + 1 :]
    group = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words == ["--install-completion"]
        return
    if words[0] == "data":
        group = group.commands[words.pop(0)]  # type: ignore[attr-defined]
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    values = command.make_context(words[0], words[1:]).params
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    recipe = values.get("config") or "camvid"
    load_config(recipe, overrides)


def test_prediction_from_python_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (text,) = snippets("docs/running.md", "python")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 40)).save("photo.jpg")
    tiny = load_config("quickstart").model.model_copy(update={"num_classes": 3})
    MaskFormer(tiny).save_pretrained("runs/mine")
    info = DatasetInfo(("a", "b", "c"), frozenset({0, 1}), palette(3), (0, 1, 2))
    Path("runs/mine/dataset.json").write_text(info_to_json(info))
    exec(text, names := {"content": Path("photo.jpg").read_bytes()})
    assert isinstance(json.loads(names["answer"]), list)  # type: ignore[arg-type]
    assert names["arrays"]["masks"].shape[1:] == (40, 48)  # type: ignore[index]
    assert Path("overlay.png").is_file()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # of the Trainer, without a GPU
@pytest.mark.parametrize("name", ["maskformer", "mask2former", "oneformer", "eomt"])
def test_the_page_on_transformers_runs_as_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, comparison = snippets("docs/transformers.md", "python")
    monkeypatch.chdir(tmp_path)
    batch = huggingface.inputs(name)
    names: dict[str, Any] = {"model": huggingface.build(name), "batch": batch}
    names["dataset"] = [
        {key: batch[key][image] for key in ("pixel_values", "mask_labels", "class_labels")}
        for image in range(2)
    ]
    if name == "oneformer":  # which the Trainer does not take, as the page says
        training = training[: training.index("options =")]
    try:
        exec(training, names)
        names["model"].cpu()  # the Trainer moves it to a GPU, and the batch is not there
        exec(comparison, names)
    finally:
        unpatch()
    assert names["loss_error"] < 1e-4
    assert names["gradient_error"] < 1e-4


def test_a_changed_model_and_losses_train_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path).rename("mine.yaml")
    names: dict[str, Any] = {}
    for text in snippets("docs/research.md", "python"):
        exec(text, names)
    assert type(names["predictor"].model).__name__ == "MyMaskFormer"
    assert names["metrics"]["step"] == names["trainer"].step == 4
    for run in ("sum", "growing", "points"):
        assert json.loads(Path(f"runs/{run}/metrics.json").read_text())["step"] == 4
    with pytest.raises(WeightsMismatchError):
        Predictor.from_pretrained("runs/sum")
    resumed = names["build_training"](
        names["recipe"], Path("runs/sum"), resume=True, model_class=names["MyMaskFormer"]
    )
    assert resumed.step == 4


@pytest.mark.filterwarnings("ignore:.*does not fit the model")  # another number of classes
def test_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the text around it says that names stand for."""
    weights, patching, training = snippets(README, "python")
    parts, criterion, own_costs, backends = snippets("docs/operators.md", "python")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 48)).save("photo.jpg")
    model = huggingface.maskformer()
    model.save_pretrained("facebook/maskformer-swin-tiny-ade")  # a folder comes before the hub
    exec(
        f"import maskformer\n{weights}",
        {"path": "facebook/maskformer-swin-tiny-ade", "folder": tmp_path / "out"},
    )
    assert (tmp_path / "out" / "config.json").is_file()
    try:
        exec(patching, patched := {"model": model})
        assert patched["names"]
    finally:
        unpatch()
    truth = (torch.rand(3, 64, 64) < 0.3).float()
    names = {
        "pixel_values": torch.rand(1, 3, 64, 64),
        "masks": [truth.bool()],
        "labels": [torch.tensor([1, 5, 7])],
        "costs": torch.rand(2, 4, 6),
        "row_counts": torch.tensor([4, 3]),
        "col_counts": torch.tensor([6, 2]),
        "logits": torch.randn(3, 64, 64, requires_grad=True),
        "truth": truth,
        "points": torch.rand(3, 10, 2),
        "things": {1, 2},
        "x": torch.rand(1, 16, 5, 4),
        "weight": torch.rand(32, 16, 3, 3),
        "bias": torch.rand(32),
        "scale": torch.rand(32),
        "shift": torch.rand(32),
        "qkv": torch.rand(1, 9, 8, 3, 2, 32),
        "relative_position_bias": torch.rand(2, 49, 49),
    }
    exec(training, names)
    outputs = names["outputs"]
    one_layer = [outputs[key][-1].detach() for key in ("class_logits", "mask_embed")]
    factors = [*one_layer, outputs["pixel_features"].detach()]
    exec(
        parts,
        names
        | dict(zip(("class_logits", "mask_embed", "pixel_features"), factors, strict=True))
        | {"mirrored": factors},
    )
    exec(backends)
    logits = torch.randn(1, 20, 151, requires_grad=True)
    official = {"pred_logits": logits, "pred_masks": torch.randn(1, 20, 16, 16, requires_grad=True)}
    names |= {
        "num_classes": 150,
        "official_outputs": official | {"aux_outputs": [official]},
        "official_targets": [{"labels": names["labels"][0], "masks": names["masks"][0]}],
        "own_cost": torch.tensor([[2.0, 1.0], [0.0, 5.0], [9.0, 9.0]]),
        "own_costs": torch.rand(2, 6, 3),
    }
    exec(criterion, names)
    assert len(names["losses"]) == 8
    names["total"].backward()
    assert logits.grad is not None
    exec(own_costs, names)
    assert names["assigned_gt_inds"].tolist() == [2, 1, 0]
    assert [len(queries) for queries, _ in names["indices"]] == [3, 2]
