"""The files that other programs read, against the published formats."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.coco_format import check_panoptic, ground_truth_as_panoptic
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from maskformer.config.schema import CocoPanopticConfig, FolderConfig, ShapesConfig
from maskformer.data import CocoPanoptic, DatasetInfo, Folder, Shapes
from maskformer.data.datasets.coco_masks import encode_mask
from maskformer.data.palette import palette
from maskformer.errors import DiskFullError
from maskformer.evaluation.panoptic_quality import PanopticQuality
from maskformer.inference.prediction import Prediction
from maskformer.output.result_writer import ResultWriter, describe_segments
from mfkernels import Instances

INFO = DatasetInfo(("car", "road", "sky"), frozenset({0}), palette(3), (3, 184, 200))


def decode_mask(encoded: dict[str, object]) -> np.ndarray:
    """COCO's run-length encoding, read the way its documentation has it."""
    height, width = encoded["size"]  # type: ignore[misc]
    lengths: list[int] = []
    number = shift = 0
    for character in str(encoded["counts"]):
        bits = ord(character) - 48
        assert 0 <= bits < 64
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                number -= 1 << shift
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            number = shift = 0
    assert shift == 0
    assert all(length >= 0 for length in lengths)
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)
    return flat.reshape(width, height).T


masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
    lambda size: arrays(np.bool_, size, elements=st.booleans())
)


@settings(max_examples=100, deadline=None)
@given(masks)
def test_masks_survive_the_run_length_encoding(mask: np.ndarray) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_run_lengths_by_hand() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[0, 2] = True  # column by column: 4 outside, 3 inside, 5 outside
    assert encode_mask(mask) == {"size": [3, 4], "counts": "435"}
    assert encode_mask(np.ones((2, 2), bool))["counts"] == "04"
    assert encode_mask(np.zeros((10, 10), bool))["counts"] == "T3"  # 100 = 3 * 32 + 4


def test_against_pycocotools() -> None:
    """The reference implementation, where somebody has it."""
    reference = pytest.importorskip("pycocotools.mask")
    for seed in range(20):
        random = np.random.default_rng(seed)
        mask = random.random((random.integers(1, 300), random.integers(1, 300))) < seed / 20
        mask[: seed * 3, : seed * 5] = True
        expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask)["counts"] == expected["counts"].decode()
        assert np.array_equal(reference.decode(encode_mask(mask)), mask)


def test_segments_by_hand() -> None:
    ids = np.array([[0, 2, 2, 0], [1, 2, 1, 0], [0, 0, 1, 0]])
    segments = [
        {"id": 1, "category_id": 1, "isthing": False, "score": 0.5},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.25},
    ]
    assert describe_segments(ids, segments, INFO) == [
        {
            "id": 1,
            "category_id": 184,
            "iscrowd": 0,
            "area": 3,
            "bbox": [0, 1, 3, 2],
            "score": 0.5,
        },
        {"id": 2, "category_id": 3, "iscrowd": 0, "area": 3, "bbox": [1, 0, 2, 2], "score": 0.25},
    ]
    assert describe_segments(np.zeros((2, 3), np.int32), [], INFO) == []


def test_panoptic_results_are_a_data_set_of_their_own(tmp_path: Path) -> None:
    """Read back as ground truth, results score 1 against themselves."""
    shapes = Shapes(ShapesConfig(val_images=6), "val")
    # Gaps between the category ids, as in COCO.
    numbers = tuple(3 * k + 1 for k in range(shapes.info.num_classes))
    info = DatasetInfo(shapes.info.classes, shapes.info.things, shapes.info.colors, numbers)
    predictions = []
    with ResultWriter(tmp_path, info) as results:
        for index, sample in enumerate(shapes):
            ids, segments = ground_truth_as_panoptic(sample)
            if index == 2:  # nothing was found here
                ids, segments = torch.zeros_like(ids), []
            found = [
                {**s, "isthing": s["category_id"] in info.things, "score": 1.0} for s in segments
            ]
            predictions.append((ids, found))
            name = f"city/{index}"
            results.add(name, index + 7, Prediction(panoptic=predictions[-1]))
            (tmp_path / "images" / "city").mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
            picture.save(tmp_path / "images" / f"{name}.jpg")
    check_panoptic(tmp_path / "panoptic.json", tmp_path / "panoptic")
    places = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    again = CocoPanoptic(CocoPanopticConfig(root=tmp_path, train=places, val=places), "val")
    assert again.info == info
    quality = PanopticQuality(info.num_classes, info.things)
    for prediction, sample, index in zip(predictions, again, range(7, 13), strict=True):
        assert sample.image_id == index
        quality.update(prediction, sample)
    assert quality.compute()["pq"] == 1


def test_label_maps_are_a_data_set_of_their_own(tmp_path: Path) -> None:
    """Label files carry the data set's own numbers, in 16 bit where 8 do not suffice."""
    for offset, dtype in ((1, np.uint8), (300, np.uint16)):
        names = ("one", "two", "three")
        numbers = tuple(offset + k for k in range(3))
        info = DatasetInfo(names, frozenset(), palette(3), numbers)
        root = tmp_path / str(offset)
        classes = torch.randint(0, 3, (5, 9))
        with ResultWriter(root, info) as results:
            results.add("a/b", "a/b", Prediction(classes=classes))
        assert not (root / "panoptic.json").exists()
        file = root / "classes" / "a" / "b.png"
        assert np.asarray(Image.open(file)).dtype == dtype
        (root / "images" / "a").mkdir(parents=True)
        Image.new("RGB", (9, 5)).save(root / "images" / "a" / "b.jpg")
        split = {"images": "images", "labels": "classes"}
        again = Folder(
            FolderConfig(root=root, train=split, val=split, classes=names, label_offset=offset),
            "val",
        )
        assert torch.equal(again[0].semantic_map(), classes)


def test_label_maps_show_the_colours_of_the_classes(tmp_path: Path) -> None:
    classes = torch.arange(3).repeat(4, 1)
    with ResultWriter(tmp_path, INFO) as results:
        results.add("x", 1, Prediction(classes=classes))
    with Image.open(tmp_path / "classes" / "x.png") as image:
        assert image.mode == "P"
        assert np.asarray(image)[0].tolist() == list(INFO.category_ids)
        assert np.asarray(image.convert("RGB"))[0].tolist() == [list(c) for c in INFO.colors]
    listed = json.loads((tmp_path / "classes.json").read_text())
    assert [(c["id"], c["name"], tuple(c["color"])) for c in listed] == list(
        zip(INFO.category_ids, INFO.classes, INFO.colors, strict=True)
    )


@pytest.mark.parametrize("numbers", [(-1, 0, 1), (1, 2, 65536)])
def test_class_numbers_that_no_label_file_holds(
    tmp_path: Path, numbers: tuple[int, int, int]
) -> None:
    info = DatasetInfo(("a", "b", "c"), frozenset(), palette(3), numbers)
    with pytest.raises(ValueError, match=f"the classes have {numbers[0]}..{numbers[2]}"):
        ResultWriter(tmp_path, info).add("x", 1, Prediction(classes=torch.zeros(2, 2).long()))


def test_instances_follow_the_results_format(tmp_path: Path) -> None:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    masks[1, 2:, 2:3] = True  # overlaps the first; the third is empty
    boxes = torch.tensor([[2.0, 1, 7, 4], [2, 2, 3, 6], [0, 0, 0, 0]])
    found = Instances(masks, torch.tensor([0, 2, 1]), torch.tensor([0.75, 0.5, 0.0]), boxes)
    with ResultWriter(tmp_path, INFO) as results:
        results.add("x", 12, Prediction(instances=found))
        results.add("y", 13, Prediction(instances=Instances(*(part[:0] for part in found))))
    entries = json.loads((tmp_path / "instances.json").read_text())
    assert [entry["image_id"] for entry in entries] == [12, 12]
    assert [entry["category_id"] for entry in entries] == [3, 200]
    assert [entry["score"] for entry in entries] == [0.75, 0.5]
    assert [entry["bbox"] for entry in entries] == [[2, 1, 5, 3], [2, 2, 1, 4]]
    for entry, mask in zip(entries, masks[:2], strict=True):
        assert np.array_equal(decode_mask(entry["segmentation"]), mask.numpy())
    # The format has no place for them.
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert [entry["id"] for entry in classes] == list(INFO.category_ids)


def test_images_that_share_name_and_id_are_told_apart(tmp_path: Path) -> None:
    ids = torch.ones(4, 5, dtype=torch.int32)
    segments = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
    masks = torch.ones(1, 4, 5, dtype=torch.bool)
    found = Instances(masks, torch.tensor([0]), torch.tensor([0.5]), torch.tensor([[0.0, 0, 5, 4]]))
    with ResultWriter(tmp_path, INFO) as results:
        for file_name in ("x.jpg", "x.png", "X.jpg"):
            results.add("x", 1, Prediction(panoptic=(ids, segments), instances=found), file_name)
    entries = check_panoptic(tmp_path / "panoptic.json", tmp_path / "panoptic")
    assert [entry["file_name"] for entry in entries] == ["x.png", "x_2.png", "x_3.png"]
    assert [entry["image_id"] for entry in entries] == [1, "x_2", "x_3"]
    images = json.loads((tmp_path / "panoptic.json").read_text())["images"]
    assert images == [
        {"id": number, "file_name": name, "height": 4, "width": 5}
        for number, name in ((1, "x.jpg"), ("x_2", "x.png"), ("x_3", "X.jpg"))
    ]
    instances = json.loads((tmp_path / "instances.json").read_text())
    assert [(i["image_id"], i["file_name"]) for i in instances] == [
        (1, "x.jpg"), ("x_2", "x.png"), ("x_3", "X.jpg"),
    ]  # fmt: skip


def test_links_lead_no_result_out_of_the_folder(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    for folder in (out, mine):
        folder.mkdir()
    (out / "panoptic").symlink_to(mine)
    with pytest.raises(ValueError, match="panoptic leads out of the output folder through a link"):
        ResultWriter(out, INFO)
    (out / "panoptic").unlink()
    results = ResultWriter(out, INFO)
    (out / "classes").mkdir()
    (out / "classes" / "city").symlink_to(mine)
    (mine / "a.png").write_text("mine")
    classes = Prediction(classes=torch.zeros(2, 2).long())
    with pytest.raises(ValueError, match="city leads out of the output folder through a link"):
        results.add("city/a", 1, classes)
    (out / "classes" / "b.png").symlink_to(mine / "a.png")
    results.add("b", 2, classes)  # takes the place of the link
    assert (mine / "a.png").read_text() == "mine"
    assert not (out / "classes" / "b.png").is_symlink()


def test_a_full_disk_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    results = ResultWriter(tmp_path, INFO)
    results.add("a", 1, Prediction(classes=torch.zeros(2, 2).long()))
    before = (tmp_path / "classes" / "a.png").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFullError, match=r"a\.png: No space left on device; .* MB are free"):
        ResultWriter(tmp_path, INFO).add("a", 1, Prediction(classes=torch.ones(2, 2).long()))
    assert (tmp_path / "classes" / "a.png").read_bytes() == before
    assert [file.name for file in tmp_path.rglob("*.p*")] == ["a.png"]


def test_an_interrupted_run_lists_what_is_complete(tmp_path: Path) -> None:
    ids = torch.ones(4, 4, dtype=torch.int32)
    segments = [{"id": 1, "category_id": 0, "isthing": True, "score": 0.9}]
    results = ResultWriter(tmp_path, INFO)
    results.add("a", "a", Prediction(panoptic=(ids, segments)))

    def stop() -> None:
        with results:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    check_panoptic(tmp_path / "panoptic.json", tmp_path / "panoptic")


def test_coco_describes_its_own_segments_alike(real_data: Path, tmp_path: Path) -> None:
    """Ids, areas and boxes of the published annotations."""
    root = real_data / "coco_panoptic_sample"
    places = {"images": "images", "panoptic": "panoptic", "annotations": "panoptic.json"}
    data = CocoPanoptic(CocoPanopticConfig(root=root, train=places, val=places), "val")
    with ResultWriter(tmp_path, data.info) as results:
        for sample in data:
            ids, segments = ground_truth_as_panoptic(sample)
            found = [{**segment, "score": 1.0} for segment in segments]
            results.add(sample.name, sample.image_id, Prediction(panoptic=(ids, found)))
    written = check_panoptic(tmp_path / "panoptic.json", tmp_path / "panoptic")
    published = json.loads((root / "panoptic.json").read_text())["annotations"]
    for ours, theirs in zip(written, published, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert ours["file_name"] == theirs["file_name"]
        expected = [
            {name: segment[name] for name in ("category_id", "area", "bbox", "iscrowd")}
            for segment in theirs["segments_info"]
            if not segment["iscrowd"]
        ]
        assert [
            {name: segment[name] for name in ("category_id", "area", "bbox", "iscrowd")}
            for segment in ours["segments_info"]
        ] == expected
