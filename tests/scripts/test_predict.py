"""predict.py on photos as people have them: faces anywhere, any shape, any folder; and the model as ONNX."""

import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, weights, write
from PIL import Image, ImageDraw
from scipy import ndimage

import predict
from datasets import crops
from models import build_model
from utils import checkpoint, files
from utils.instances import targets

BLUE, RED = (30, 60, 200), (230, 20, 20)


class Red(torch.nn.Module):
    """A parser that knows its task: class 1 where a photo is red. It keeps what it was shown."""

    def forward(self, images):
        self.seen = images
        red = images[:, :1] - images[:, 2:]
        return {"semantic": torch.cat([torch.zeros_like(red), red, red - 9], 1)}


class Discs(Red):
    """... and where one red disc ends and the next one begins. sure: how hot the centres of the first are."""

    sure = ()

    def forward(self, images):
        found = super().forward(images)
        red = found["semantic"].argmax(1) == 1
        ids = torch.from_numpy(np.stack([ndimage.label(mask)[0] for mask in red])).byte()
        aims = targets(ids)
        for number, share in enumerate(self.sure, start=1):
            aims["center"][(ids == number)[:, None]] *= share
        logits = F.pad(9 * found["semantic"], (0, 0, 0, 0, 0, 8), value=-9.0)  # of 11 classes
        return {"semantic": logits, "center": aims["center"], "offset": aims["offset"]}


@pytest.fixture
def red(monkeypatch):
    model = Red()
    monkeypatch.setattr(predict, "restore", lambda *_: model)
    return model


@pytest.fixture(scope="module")
def trained(finetuned, tmp_path_factory):
    """trained(aspects): a checkpoint that knows the shapes of its photos, or, with None, does not."""

    def trained(aspects):
        path = tmp_path_factory.mktemp("trained") / "best.pt"
        state = weights(finetuned / "best.pt")
        state["data"].pop("aspects", None)
        state["data"] |= {"aspects": aspects} if aspects else {}
        del state["format"]
        checkpoint.save(path, **state)
        return path

    return trained


def run(*flags):
    predict.main(predict.get_parser().parse_args([str(flag) for flag in flags]))
    files.release()


def photo(path, width=200, height=150, circle=(100, 75, 30), **how):
    """A red circle (x, y, radius) on blue; its mask."""
    x, y, r = circle
    image = Image.new("RGB", (width, height), BLUE)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=RED)
    image.save(path, **how)
    return np.asarray(image)[..., 0] > 128


def overlap(mask, truth):
    mask = np.asarray(Image.open(mask)) == 1
    return (mask & truth).sum() / (mask | truth).sum()


# ---- from logits to a mask


@pytest.mark.parametrize("sizes", [(32, 32, 200, 133), (32, 24, 64, 500), (48, 48, 30, 31), (1, 3, 90, 7)])
def test_bands_give_what_the_whole_gives(sizes, monkeypatch):
    h, w, height, width = sizes
    logits = torch.randn(19, h, w, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size=(height, width), mode="bilinear")[0].argmax(0).numpy()
    for band in (1, 7, 64, 10**6):
        monkeypatch.setattr(predict, "BAND", band)
        assert (predict.class_map(logits, height, width) == whole).all(), band


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no /proc/self/clear_refs here")
def test_memory_is_bounded(finetuned, tmp_path):
    """6 megapixels: their logits alone would take 264 MB, so a photo of 48 would take 2 GB."""
    photo(tmp_path / "large.jpg", 3000, 2000, (1500, 1000, 600))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest that memory has been is forgotten
    before = resident("VmRSS")
    run("--init", finetuned / "best.pt", tmp_path / "large.jpg", "--out", tmp_path, "--device", "cpu")
    assert resident("VmHWM") - before < 200


def resident(which):
    """MB of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(which)) / 1024


# ---- where the face is


@pytest.mark.parametrize(
    "box", [None, (40, 30, 80, 60), (-20, 90, 100, 50), (150, 20, 90, 120), (70, 70, 3, 1)]
)
@pytest.mark.parametrize("aspect", [None, 1.0, 0.75])
def test_a_frame_shows_what_it_says(box, aspect):
    """Red of a photo is its x, green its y: the input shows each pixel of the part at its place."""
    width, height, size = 200, 150, 64
    y, x = np.mgrid[:height, :width]
    image = Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8))
    frame = crops.frame(width, height, size, box, aspect)
    (left, top, right, bottom), (first, upper, last, lower) = frame
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert 0 <= first < last <= size and 0 <= upper < lower <= size
    x, y, w, h = box or (0, 0, width, height)
    assert left <= max(0, x) and right >= min(width, x + w), "all of the box that the photo has"
    assert top <= max(0, y) and bottom >= min(height, y + h)
    per_pixel = (right - left) / (last - first), (bottom - top) / (lower - upper)
    if aspect and min(right - left, bottom - top) > 20:  # else whole pixels are too coarse
        assert per_pixel[0] / per_pixel[1] == pytest.approx(aspect, rel=0.05)
    seen = crops.network_input(image, frame, size).astype(float)
    assert seen.shape == (3, size, size)
    columns = left + (np.arange(first, last) - first + 0.5) * per_pixel[0] - 0.5
    assert np.abs(seen[0, upper, first:last] - columns).max() < max(1, per_pixel[0])
    centre = x + w / 2, y + h / 2
    if left < centre[0] < right and top < centre[1] < bottom:
        shown = seen[:2, size // 2, size // 2]
        assert (np.abs(shown - centre) <= np.maximum(1.5, per_pixel)).all(), "a box grows about its centre"
    assert (seen[:, :upper] == seen[:, upper : upper + 1]).all(), "padding repeats the border"


def test_a_box_frames_the_face(red, trained, tmp_path):
    """A small face in a large photo is parsed as if it filled the frame; elsewhere is background."""
    truth = photo(tmp_path / "small.png", 900, 700, (700, 500, 20))
    photo(tmp_path / "other.png", 900, 700, (100, 100, 20))
    boxes = write(
        tmp_path / "boxes.json", {"small.png": [675, 470, 50, 60], "other.png": [300, 300, 80, 80.5]}
    )
    run("--init", trained(None), tmp_path, "--boxes", boxes, "--out", tmp_path / "out", "--batch-size", 1)
    assert overlap(tmp_path / "out/small_mask.png", truth) > 0.9
    assert not np.asarray(Image.open(tmp_path / "out/other_mask.png")).any(), "its circle is not in the box"
    whole = ["--init", trained(None), tmp_path / "small.png", "--out", tmp_path / "whole"]
    run(*whole)
    assert overlap(tmp_path / "whole/small_mask.png", truth) < 0.9
    run(*whole, "--overwrite", "--box", 690, 490, 300, 300)  # beyond the border, and cut on the left
    mask = np.asarray(Image.open(tmp_path / "whole/small_mask.png")) == 1
    assert (mask[:, 695:] == truth[:, 695:]).mean() > 0.99 and not mask[:, :690].any()
    run(*whole, "--overwrite", "--box", 640, 490, 120, 20)
    seen = red.seen[0, 0] > 0.5
    assert seen.any(0).sum() == seen.any(1).sum() > 5, "a flat box is made square, not stretched"


@pytest.mark.parametrize(
    ("aspects", "padded"), [([0.9, 1.0, 1.1], True), ([1.0, 1.2, 2.0], False), (None, False)]
)
def test_a_photo_of_another_shape_is_padded(aspects, padded, red, trained, tmp_path, capsys):
    """A circle stays one where photos as wide as this one were not trained on."""
    truth = photo(tmp_path / "wide.jpg", 400, 200, (150, 100, 60))
    run("--init", trained(aspects), tmp_path / "wide.jpg", "--out", tmp_path)
    assert overlap(tmp_path / "wide_mask.png", truth) > 0.9
    seen = red.seen[0, 0] > 0.5
    assert (seen.any(0).sum() == seen.any(1).sum()).item() == padded
    assert ("padded, not stretched" in capsys.readouterr().out) == padded


def test_boxes_are_of_the_upright_photo(red, trained, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    truth = photo(tmp_path / "turned.jpg", 300, 100, (270, 50, 20), exif=exif)
    box = ["--box", 20, 240, 60, 60]
    run("--init", trained(None), tmp_path / "turned.jpg", "--out", tmp_path / "out", *box)
    assert overlap(tmp_path / "out/turned_mask.png", np.rot90(truth, -1)) > 0.9


# ---- which photos


def test_subfolders_are_mirrored_and_results_are_no_photos(red, trained, tmp_path, capsys):
    (tmp_path / "in/a/b").mkdir(parents=True)
    (tmp_path / "in/results").mkdir()
    for name in ("top.jpg", "a/one.png", "a/b/one.jpg", "a/party_mask.png"):
        photo(tmp_path / "in" / name)
    flags = ["--init", trained(None), tmp_path / "in"]
    (tmp_path / "in/phone.HEIC").write_bytes(b"....ftypheic")
    run(*flags, "--out", tmp_path / "flat")
    written = sorted(p.name for p in (tmp_path / "flat").iterdir())
    assert written == ["lineage.json", "top_mask.png", "top_overlay.png"]
    said = capsys.readouterr().out
    assert "subfolders are looked into with --recursive only: a, results" in said and "phone.HEIC" in said

    stems = ["a/b/one", "a/one", "a/party_mask", "top"]
    expected = sorted(f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay"))
    for out in (tmp_path / "in/results", tmp_path / "in"):
        for again in ([], ["--overwrite"]):
            if out.name == "results":
                photo(out / "other.jpg")  # whatever is below --out is no photo
            run(*flags, "--out", out, "--recursive", *again)
            found = sorted(str(path.relative_to(out)) for path in out.rglob("*_*.png"))
            own = [name for name in found if name != "a/party_mask.png" and not name.startswith("results/")]
            assert own == expected
            assert "4 photos parsed" in capsys.readouterr().out
        (tmp_path / "in/results/other.jpg").unlink(missing_ok=True)


def test_results_named_by_a_wildcard_are_no_photos(red, trained, tmp_path, capsys):
    photo(tmp_path / "a.jpg")
    for again in ([], ["--overwrite"]):
        run("--init", trained(None), *sorted(tmp_path.glob("*.*g")), "--out", tmp_path, *again)
        assert "1 photos parsed" in capsys.readouterr().out
    run("--init", trained(None), tmp_path / "a_mask.png", "--out", tmp_path / "out")  # asked for by name
    assert (tmp_path / "out/a_mask_mask.png").exists()


def test_one_bad_photo_does_not_stop_the_others(red, complaint, trained, tmp_path):
    for name in "abcde":
        photo(tmp_path / f"{name}.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:1500])
    (tmp_path / "d.jpg").write_text("not a picture")
    boxes = write(tmp_path / "boxes.json", {"e.jpg": [200, 0, 5, 5]})
    flags = [
        "--init",
        trained(None),
        tmp_path,
        "--out",
        tmp_path / "out",
        "--batch-size",
        2,
        "--boxes",
        boxes,
    ]
    said = complaint(predict, *flags)
    assert "3 of 5 photos left out" in said and "b.jpg" in said and "d.jpg" in said
    assert "e.jpg: box 200 0 5 5 lies outside of the photo, 200x150" in said
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["a_mask.png", "a_overlay.png", "c_mask.png", "c_overlay.png", "lineage.json"]


def test_two_at_once_do_not_write_into_one_folder(red, complaint, trained, tmp_path):
    photo(tmp_path / "a.jpg")
    hold = "import sys; from utils import files; files.lock(sys.argv[1]); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path / "out"], cwd=ROOT, **pipes) as other:
        other.stdout.readline()
        said = complaint(predict, "--init", trained(None), tmp_path / "a.jpg", "--out", tmp_path / "out")
        other.stdin.close()
    assert f"process {other.pid} on " in said and "is writing there" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_full_disk_is_one_line(red, complaint, trained, tmp_path):
    """Told in time by a limit on the size of files; what is there is whole."""
    photo(tmp_path / "a.png")
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = ["--init", trained(None), tmp_path, "--out", tmp_path / "out"]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        early = complaint(predict, *flags)
        assert not list((tmp_path / "out").iterdir()), "before the work"
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        late = complaint(predict, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "cannot be written into" in early and "b_overlay.png: cannot be written" in late
    assert early.count("\n") == late.count("\n") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_mask.png",
        "a_overlay.png",
        "b_mask.png",
        "lineage.json",
    ]


ONE, TWO = "{photos}/one.png", "{photos}/two.png"
MISTAKES = [
    ([], "name photos or folders to parse"),
    ([ONE, "--onnx", "{photos}/x.onnx"], "and not both"),
    (["nowhere.jpg"], "nowhere.jpg: no such photo or folder"),
    (["{photos}/empty"], "holds no picture"),
    ([ONE, "{photos}/more/one.jpg"], "would both become one_mask.png"),
    ([ONE, ONE], "would both become"),
    ([ONE, TWO, "--box", "0", "0", "9", "9"], "--box: for one photo; there are 2"),
    ([ONE, "--box", "0", "0", "0", "9"], "has no size"),
    ([ONE, "--box", "nan", "0", "9", "9"], "is no box"),
    ([ONE, "--box", "0", "0", "9", "9", "--boxes", "x"], "not allowed with"),
    ([ONE, "--box", "-90", "0", "80", "9"], "box -90 0 80 9 lies outside"),
    ([ONE, "--boxes", "nowhere.json"], "nowhere.json: cannot be read"),
    ([ONE, "--boxes", ONE], "not JSON"),
    ([ONE, "--boxes", "{photos}/list.json"], "need {{"),
    ([ONE, "--boxes", "{photos}/short.json"], "one.png: [1, 2, 3] is no box"),
    ([ONE, "--boxes", "{photos}/words.json"], "is no box"),
    ([ONE, "--boxes", "{photos}/faces.json"], "lists several faces of one.png; give one"),
    ([ONE, "--boxes", "{photos}/other.json"], "boxes of no photo here: three.png"),
    ([ONE, "--out", ONE], "is a file"),
    ([ONE, "--out", ONE + "/out"], "cannot be written into"),
    ([ONE, TWO, "--out", "{photos}/done"], "done: holds two_overlay.png already; --overwrite"),
    (
        ["{photos}/more/odd_mask.png", "{photos}/odd.png", "--out", "{photos}/more", "--overwrite"],
        "is a photo",
    ),
    (["--onnx", "{photos}/done"], "is there already"),
    (["--onnx", "{photos}/done", "--overwrite"], "is a folder"),
    (["--onnx", ONE + "/x.onnx"], "is a file"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name in ("empty", "more", "done"):
        (root / name).mkdir()
    for name in (
        "one.png",
        "two.png",
        "odd.png",
        "more/one.jpg",
        "more/odd_mask.png",
        "done/two_overlay.png",
    ):
        photo(root / name)
    write(root / "list.json", [[1, 2, 3, 4]])
    write(root / "short.json", {"one.png": [1, 2, 3]})
    write(root / "words.json", {"one.png": ["1", "2", "3", "4"]})
    faces = [{"id": 1, "box": [1, 2, 3, 4]}]
    write(root / "faces.json", {"none.png": [], "one.png": faces})
    write(root / "other.json", {"one.png": [1, 2, 3, 4], "three.png": [1, 2, 3, 4]})
    return root


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(flags, named, complaint, photos, finetuned, tmp_path, capsys):
    flags = [flag.format(photos=photos) for flag in flags]
    out = [] if "--out" in flags else ["--out", tmp_path / "out"]
    said = complaint(predict, "--init", finetuned / "best.pt", *flags, *out)
    assert named.replace("{{", "{") in said and "Traceback" not in said
    assert said.count("\n") == 1 or "usage:" in said  # argparse's own has the usage before it
    assert {path.name for path in tmp_path.glob("out/*")} <= {"lineage.json"}, "nothing else is written"


# ---- several faces


@pytest.fixture(scope="module")
def crowded(finetuned, tmp_path_factory):
    """A checkpoint of a network for scenes, untrained."""
    path = tmp_path_factory.mktemp("crowded") / "best.pt"
    state = weights(finetuned / "best.pt")
    classes = state["data"]["classes"]
    torch.manual_seed(0)
    model = build_model("panoptic_unet", len(classes))
    state["args"] |= {"model": "panoptic_unet", "scenes": 3}
    things = {"face": list(range(1, len(classes)))}
    state["data"] |= {"target": "panoptic", "things": things, "scenes": 3, "aspects": [1.0] * 3}
    del state["format"]
    checkpoint.save(path, **state | {"model": model.state_dict()})
    return path


@pytest.fixture
def discs(monkeypatch):
    model = Discs()
    monkeypatch.setattr(predict, "restore", lambda *_: model)
    return model


def group_photo(path, width, height, circles):
    """Red circles (x, y, radius) on blue; the mask of each."""
    image = Image.new("RGB", (width, height), BLUE)
    y, x = np.mgrid[:height, :width]
    for a, b, r in circles:
        ImageDraw.Draw(image).ellipse((a - r, b - r, a + r, b + r), fill=RED)
    image.save(path)
    return [(x - a) ** 2 + (y - b) ** 2 <= r**2 for a, b, r in circles]


@pytest.mark.parametrize(("width", "height"), [(500, 260), (260, 500), (300, 300)])
def test_each_face_has_an_id_and_a_box(width, height, discs, crowded, trained, tmp_path, monkeypatch, capsys):
    """... in pixels of the photo, whatever its shape; a box is one that --boxes takes."""
    circles = [(60, 60, 40), (180, 70, 50), (120, 200, 30)]
    truths = group_photo(tmp_path / "party.png", width, height, circles)
    out = tmp_path / "out"
    run("--init", crowded, tmp_path / "party.png", "--size", 128, "--out", out)
    assert discs.seen.shape[2:] == (128, 128)
    said = capsys.readouterr().out
    assert "padded" not in said, "no box frames a group"
    assert "\n  3 faces: " in said and "\n  --size 128, trained at 32: faces larger in pixels" in said
    seen_at = {500: "party.png at 128 x 66 pixels; --size N", 260: "party.png at 66 x 128 pixels; --size N"}
    assert ("seen smaller" in said) == (width in seen_at) and seen_at.get(width, "") in said
    seen = discs.seen[0, 0] > 0.5
    assert seen.any(0).sum() < 128 > seen.any(1).sum(), "a photo is not stretched"
    assert sorted(p.name for p in out.iterdir()) == [
        "faces.json",
        "lineage.json",
        "party_faces.png",
        "party_mask.png",
        "party_overlay.png",
    ]
    rows = json.loads((out / "faces.json").read_text())["party.png"]
    ids, mask = (np.asarray(Image.open(out / f"party_{kind}.png")) for kind in ("faces", "mask"))
    assert ids.shape == mask.shape == (height, width) and not ids[mask == 0].any()
    assert sorted(row["id"] for row in rows) == [1, 2, 3] == sorted(set(ids[ids > 0].tolist()))
    for truth, (x, y, r) in zip(truths, circles, strict=True):
        (row,) = [row for row in rows if (ids[truth] == row["id"]).mean() > 0.9]
        here = ids == row["id"]
        assert (here & truth).sum() / (here | truth).sum() > 0.9 and row["area"] == here.sum()
        assert row["thing"] == "face" and 0.9 < row["score"] <= 1
        assert np.abs(np.array(row["box"]) - (x - r, y - r, 2 * r + 1, 2 * r + 1)).max() <= 5
        box = Image.fromarray(here).getbbox()
        assert row["box"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    boxes = write(tmp_path / "boxes.json", {"party.png": rows[0]["box"]})
    monkeypatch.setattr(predict, "restore", lambda *_: Red())
    run("--init", trained(None), tmp_path / "party.png", "--boxes", boxes, "--out", tmp_path / "one")
    assert not (tmp_path / "one/faces.json").exists(), "a network for one face"
    alone = np.asarray(Image.open(tmp_path / "one/party_mask.png")) == 1
    here = ids == rows[0]["id"]
    assert (alone & here).sum() / here.sum() > 0.9


def test_faces_are_measured_by_themselves():
    """... where their boxes overlap, and where the photo has nothing of one or its class is no thing's."""
    ids = np.kron([[1, 1, 1, 2], [1, 2, 2, 2], [0, 0, 4, 4], [0, 0, 0, 4]], np.ones((2, 2), int)).astype(
        np.uint8
    )
    found = [{"id": i, "thing": "face", "score": 1 / i, "box": None, "area": None} for i in (1, 2, 3, 4)]
    mask = np.ones((20, 40), np.uint8)
    mask[10:, :] = 0
    faces, rows = crops.faces_of(ids, found, mask, {"face": [1]}, crops.frame(40, 20, 8))
    assert [(row["id"], row["box"], row["area"]) for row in rows] == [
        (1, [0, 0, 30, 10], 200),
        (2, [10, 0, 30, 10], 200),
    ]
    assert faces.shape == (20, 40) and not faces[10:].any() and (faces[:10] > 0).all()


def test_stray_pixels_do_not_stretch_a_box():
    """... where the face is neither first nor last in it; they count in the area."""
    ids = np.zeros((20, 40), np.uint8)
    ids[5:15, 10:20] = ids[2, 4] = ids[18, 30:33] = 1
    found = [{"id": 1, "thing": "face", "score": 1.0, "box": None, "area": None}]
    frame = crops.Frame((0, 0, 40, 20), (0, 0, 40, 20))
    faces, (row,) = crops.faces_of(ids, found, np.ones_like(ids), {"face": [1]}, frame)
    assert row["box"] == [10, 5, 10, 10] and row["area"] == 104 and np.array_equal(faces, ids)


def test_a_larger_input_finds_smaller_faces(discs, crowded, tmp_path, capsys):
    circles = [(100, 100, 60), (300, 300, 5)]
    group_photo(tmp_path / "far.png", 400, 400, circles)
    found = {}
    for size in (16, 32, 256):
        run("--init", crowded, tmp_path / "far.png", "--size", size, "--out", tmp_path / str(size))
        found[size] = json.loads((tmp_path / str(size) / "faces.json").read_text())["far.png"]
        said = capsys.readouterr().out
        assert (f"--size {size}, trained at 32" in said) == (size != 32)
        assert ("fall apart" in said) == (size > 32) and ("are missed" in said) == (size < 32)
    assert len(found[32]) == 1 and len(found[256]) == 2


def test_in_a_box_are_faces_of_the_photo(discs, crowded, tmp_path, capsys):
    """... or what else is counted, and is called so."""
    state = weights(crowded)
    del state["format"]
    dogs = tmp_path / "dogs.pt"
    checkpoint.save(dogs, **state | {"data": state["data"] | {"things": {"dog": list(range(1, 11))}}})
    group_photo(tmp_path / "party.png", 400, 300, [(60, 60, 40), (300, 200, 40)])
    box = ["--box", 240, 140, 120, 120]
    run("--init", dogs, tmp_path / "party.png", "--out", tmp_path / "out", "--size", 96, *box)
    said = capsys.readouterr().out
    assert "1 instances: " in said and "32: instances larger" in said
    (row,) = json.loads((tmp_path / "out/faces.json").read_text())["party.png"]
    assert np.abs(np.array(row["box"]) - (260, 160, 81, 81)).max() <= 3 and row["thing"] == "dog"


def test_results_of_faces_are_no_photos_and_not_replaced(crowded, complaint, tmp_path, capsys):
    """... with the network itself, which knows nothing yet."""
    photo(tmp_path / "a.png")
    photo(tmp_path / "a_faces.png")  # no result: no mask and no overlay is beside it
    out = tmp_path / "out"
    run("--init", crowded, tmp_path, "--out", out)
    assert list(json.loads((out / "faces.json").read_text())) == ["a.png", "a_faces.png"]
    assert "2 photos parsed" in capsys.readouterr().out
    for path in out.glob("*.png"):
        path.unlink()
    again = ["--init", crowded, tmp_path, "--out", out]
    assert "faces.json lists faces of a.png, a_faces.png already; --overwrite" in complaint(predict, *again)
    (tmp_path / "a_faces.png").unlink()
    for again in ([], ["--overwrite"]):
        run("--init", crowded, tmp_path, "--out", tmp_path, *again)
        assert "1 photos parsed" in capsys.readouterr().out


def test_faces_of_photos_one_after_another_are_in_one_list(discs, crowded, complaint, tmp_path):
    """... and --overwrite replaces those of its photos alone; a file of something else is left alone."""
    listed = tmp_path / "out/faces.json"
    flags = ["--init", crowded, "--out", tmp_path / "out"]
    for name, x in (("a.png", 20), ("b.png", 20), ("b.png", 60)):
        group_photo(tmp_path / name, 80, 80, [(x, 40, 15)])
        again = ["--overwrite"] if x == 60 else []
        run(*flags, tmp_path / name, *again)
    (a,), (b,) = (json.loads(listed.read_text())[name] for name in ("a.png", "b.png"))
    assert a["box"][0] < 40 < b["box"][0]
    before = write(listed, {"a.png": "mine"}).read_bytes()
    said = complaint(predict, *flags, tmp_path / "a.png", "--overwrite")
    assert "is no list of faces" in said and listed.read_bytes() == before and said.count("\n") == 1


def test_faces_of_a_lower_score_are_left_out(discs, crowded, complaint, finetuned, tmp_path):
    """... of the list, of their mask and of the overlay, and of no mask of classes."""
    group_photo(tmp_path / "a.png", 90, 90, [(25, 25, 20), (65, 65, 20)])
    flags = [tmp_path / "a.png", "--overwrite", "--out", tmp_path / "out"]

    def at(score):
        run("--init", crowded, *flags, "--min-score", score)
        rows = json.loads((tmp_path / "out/faces.json").read_text())["a.png"]
        pictures = {kind: Image.open(tmp_path / f"out/a_{kind}.png") for kind in ("faces", "overlay", "mask")}
        return rows, {kind: np.asarray(picture) for kind, picture in pictures.items()}

    discs.sure = [1.0, 0.5]
    both, one = at(0), at(0.7)
    assert len(both[0]) == 2 and one[0] == both[0][:1] and one[0][0]["score"] > 0.7
    assert set(np.unique(both[1]["faces"])) == {0, 1, 2} and set(np.unique(one[1]["faces"])) == {0, 1}
    assert np.array_equal(one[1]["faces"] == 1, both[1]["faces"] == 1)
    assert (one[1]["overlay"] != both[1]["overlay"]).any()
    assert np.array_equal(one[1]["mask"], both[1]["mask"])
    said = complaint(predict, "--init", finetuned / "best.pt", *flags, "--min-score", 0.5)
    assert "--min-score 0.5: has no effect but on a network that tells faces apart" in said
    assert said.count("\n") == 1


def test_the_side_of_the_input_is_for_scenes(complaint, finetuned, tmp_path):
    photo(tmp_path / "a.png")
    said = complaint(predict, "--init", finetuned / "best.pt", tmp_path / "a.png", "--size", 64)
    assert "--size 64: has no effect but on a network for scenes" in said and said.count("\n") == 1


# ---- the model for others


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("unet", "none"),
        ("unet_gn", "grey-world"),
        ("fpn_resnet18", "standardise"),
        ("unet_efficientnet_lite0", "none"),
    ],
)
def test_onnx_gives_the_same(name, how, finetuned, tmp_path):
    reason = "pip install -r requirements-extra.txt"
    pytest.importorskip("onnx", reason=reason)
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    state = weights(finetuned / "best.pt")
    classes = state["data"]["classes"]
    torch.manual_seed(0)
    model = build_model(name, len(classes), preprocess=how).eval()
    for key, values in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            values.uniform_(0.5, 1.5)  # as if trained: batch statistics would not do
    state["args"] |= {"model": name, "preprocess": how, "size": 50}
    del state["format"]
    checkpoint.save(tmp_path / "best.pt", **state | {"model": model.state_dict()})
    run("--init", tmp_path / "best.pt", "--onnx", tmp_path / "new/model.onnx")
    session = runtime.InferenceSession(str(tmp_path / "new/model.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
        ("images", ["N", 3, 50, 50], "tensor(float)")
    ]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["N", len(classes), 50, 50])]
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == classes
    images = torch.rand(3, 3, 50, 50)
    with torch.no_grad():
        logits = model(images)["semantic"].numpy()
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - logits).max() < 1e-4


def test_without_its_package_onnx_says_how_to_get_it(complaint, finetuned, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = complaint(predict, "--init", finetuned / "best.pt", "--onnx", tmp_path / "x.onnx")
    assert "pip install -r requirements-extra.txt" in said and not list(tmp_path.iterdir())
