"""Small data sets that once trained on nonsense without a word: read right now, or refused in one line."""

import json

import numpy as np
import pytest
from conftest import write
from PIL import Image

import train_finetune

FLAGS = ["--size", "16", "--steps", "1", "--batch-size", "2", "--device", "cpu"]
COLORS = [[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]


def faces(root, classes=None, colors=None, *, photo=lambda a: a, mask=lambda m: m, suffix="", exif=None):
    """Four photos of 48 x 64 with a face of four classes, each changed by `photo` and `mask`."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(4):
        pixels = rng.integers(60, 90, (64, 48, 3), dtype=np.uint8)
        pixels[10:54, 8:40] += 100
        ids = np.zeros((64, 48), np.uint8)
        ids[10:54, 8:40] = 1
        ids[24:28, 14:20] = 2
        ids[24:28, 28:34] = 3
        options = {"exif": exif} if exif else {}
        Image.fromarray(photo(pixels)).save(root / f"images/f{i}.png", **options)
        made = mask(ids)
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(root / f"labels/f{i}{suffix}.png")
    if classes:
        write(root / "classes.json", {"classes": classes, **({"colors": colors} if colors else {})})
    return root


def palette(ids):
    """The ids in reverse, and a palette whose colours say so."""
    image = Image.fromarray(3 - ids)
    image.putpalette(sum(COLORS[::-1], []))
    return image


def turned(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


NAMES = ["background", "skin", "left eye", "right eye"]
REFUSED = {
    "all void": (
        dict(classes=["background", "skin"], mask=lambda m: m * 0 + 255),
        [],
        "train: no labelled pixel in 3 masks, all are 255",
    ),
    "one class, saved as 255": (
        dict(classes=["background", "face"], mask=lambda m: np.uint8(m > 0) * 255),
        [],
        "covers 46 % of all pixels: save face as 1",
    ),
    "ids with gaps": (dict(classes=NAMES, mask=lambda m: m * 50), [], "look like grey levels"),
    "a class in no mask": (dict(classes=[*NAMES, "hat"]), [], "--allow-empty hat"),
    "a mask in the frame that EXIF turns": (
        dict(exif=turned(6), photo=lambda a: np.rot90(a), mask=lambda m: np.rot90(m).copy()),
        [],
        "the photo is turned by its EXIF orientation 6, the mask is not",
    ),
    "a batch of one": (dict(), ["--batch-size", "1"], "BatchNorm needs more than one value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_train_wrong_is_refused(case, complaint, tmp_path):
    how, flags, reason = REFUSED[case]
    root = faces(tmp_path / "data", **how)
    said = complaint(train_finetune, "--data", root, *FLAGS, *flags, "--out", tmp_path / "run")
    assert said.startswith("error: ") and reason in said
    assert not (tmp_path / "run" / "last.pt").exists()


READ = {
    "a palette in another order": dict(classes=NAMES, colors=COLORS, mask=palette),
    "masks with a suffix": dict(classes=NAMES, suffix="_mask"),
    "grey photos of 16 bits": dict(classes=NAMES, photo=lambda a: np.uint16(a[..., 0]) * 257),
    "upside down, with the mask upright": dict(
        classes=NAMES, exif=turned(3), photo=lambda a: a[::-1, ::-1].copy()
    ),
    "a class that is meant to be in no mask": dict(classes=[*NAMES, "hat"]),
}


@pytest.fixture(scope="module")
def trained(calls, tmp_path_factory):
    """{case: what the run of a step kept about its data, and what it said}."""
    home = tmp_path_factory.mktemp("cases")
    jobs = []
    for n, how in enumerate(READ.values()):
        root = faces(home / f"data{n}", **how)
        allowed = ["--allow-empty", "hat"] if "hat" in how["classes"] else []
        more = [*allowed, "--model", "unet_gn", "--val-fraction", "0.25"]
        jobs.append(["train_finetune.py", "--data", root, *FLAGS, *more, "--out", home / f"run{n}"])
    said = [done.stdout for done in calls(*jobs)]
    kept = [json.loads((home / f"run{n}" / "data.json").read_text())["train"] for n in range(len(READ))]
    return dict(zip(READ, zip(kept, said, strict=True), strict=True))


def test_the_next_script_allows_what_this_one_was_allowed(call, trained, tmp_path):
    said = trained["a class that is meant to be in no mask"][1]
    init = said.split("--init ")[-1].split()[0]
    flags = ["--init", init, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--out", tmp_path / "run"]
    assert "greedy reward" in call("train_reward.py", *flags).stdout


@pytest.mark.parametrize("case", READ)
def test_what_is_meant_is_read(case, trained):
    facts, said = trained[case]
    pixels = dict(zip(NAMES, [3 * (64 * 48 - 44 * 32), 3 * (44 * 32 - 48), 3 * 24, 3 * 24], strict=True))
    hat = {"hat": 0} if "hat" in READ[case]["classes"] else {}
    assert facts["pixels"] == pixels | hat and facts["pixels_ignored"] == 0
    if "upside down" in case:
        assert "carry an EXIF orientation other than 1" in said and "upright frame" in said
    assert "a flip swaps left eye with right eye" in said
