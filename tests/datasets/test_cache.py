"""The cache: made once, noticed when anything changed, never half written, never trusted when damaged."""

import functools
import multiprocessing
import os
import resource
import signal
import sys
import time

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image

from datasets import cache, folder, masks, open_faces
from datasets.cache import CachedFaces
from utils.errors import UserError

OPENED = []  # paths that this process has opened, since the list was cleared
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four faces of 24 x 32 pixels, and a cache folder of their own."""
    monkeypatch.setattr(cache, "ROOT", tmp_path / "cache")
    monkeypatch.setattr(cache, "SETTLED", -1)  # files of this moment are remembered, too
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "faces" / name).mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((32, 24), np.uint8)
        mask[8:24, 4:20] = 1
        mask[: i + 1, 0] = 255
        Image.fromarray(rng.integers(0, 256, (32, 24, 3), np.uint8)).save(tmp_path / f"faces/images/{i}.bmp")
        Image.fromarray(mask).save(tmp_path / f"faces/labels/{i}.png")
    return tmp_path / "faces"


def load(root, size=16):
    faces = open_faces(root)
    return CachedFaces(faces, faces.splits["train"], size)


def made():
    """The memory maps there are, with what tells one from the same made again."""
    return {path: path.stat().st_ino for path in cache.ROOT.glob("*.npy")}


def test_what_the_scan_tells(root):
    data = load(root)
    assert data.counts.tolist() == [[32 * 24 - 256 - i, 256, i] for i in range(1, 5)]
    assert data.counts.dtype == np.int64 and data.sizes.tolist() == [[24, 32]] * 4 and data.notes == []
    assert len(set(data.digests)) == 4 and {len(d) for d in data.digests} == {16}
    first = made()
    again = load(root)
    assert made() == first, "made once"
    assert (again.counts == data.counts).all() and (again.sizes == data.sizes).all()
    assert again.digests == data.digests and again.digest == data.digest
    faces = open_faces(root)
    bare = [s._replace(label=None) for s in faces.splits["train"]]
    unlabelled = CachedFaces(faces, bare, 16)
    assert not unlabelled.counts.any() and (unlabelled.memory[:, 3] == 255).all()
    assert unlabelled.digest != data.digest
    assert CachedFaces(faces, faces.splits["train"][::-1], 16).digests == data.digests[::-1]


def test_a_photo_replaced_within_the_same_size_and_time(root):
    before = load(root)
    for replaced in (0, 1):
        path = root / f"images/{replaced}.bmp"
        status = path.stat()
        content = bytearray(path.read_bytes())
        content[-100:] = bytes(100)
        time.sleep(0.02)  # a clock of files ticks every few milliseconds
        if replaced == 0:
            path.write_bytes(content)
        else:
            (root / "new").write_bytes(content)
            os.replace(root / "new", path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
        after = load(root)
        assert [a == b for a, b in zip(before.digests, after.digests, strict=True)].index(False) == replaced
        assert before.digest != after.digest
        assert (after.memory[replaced] != before.memory[replaced]).any()
        before = after


def test_only_what_changed_is_read_again(root):
    load(root)
    OPENED.clear()
    load(root)
    read = [path for path in OPENED if path.startswith(str(root / "images"))]
    assert not read, "the manifest knows them"
    os.utime(root / "images/2.bmp")
    OPENED.clear()
    load(root)
    read = [path for path in OPENED if path.startswith(str(root / "images"))]
    assert read == [str(root / "images/2.bmp")], "one, and not decoded: its content is the same"
    assert len(made()) == 1


def test_a_file_of_this_moment_is_not_remembered(root, monkeypatch):
    """It may change once more without a change of its time stamps."""
    monkeypatch.setattr(cache, "SETTLED", 60)
    load(root)
    assert not (cache.ROOT / "manifests").exists()
    OPENED.clear()
    load(root)
    assert str(root / "images/0.bmp") in OPENED


def test_a_moved_folder_keeps_its_cache_and_a_renamed_mask_does_not(root):
    data = load(root)
    root.rename(root.parent / "moved")
    assert load(root.parent / "moved").digest == data.digest and len(made()) == 1
    faces = open_faces(root.parent / "moved")
    sample = faces.splits["train"][0]
    os.rename(sample.label, sample.label.replace("0.png", "0_nose.png"))  # part masks say the part so
    renamed = sample._replace(label=(sample.label.replace("0.png", "0_nose.png"),))
    assert cache.digests_of([renamed])[1] != data.digests[:1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "beside", "no beside", "manifest"])
def test_a_damaged_cache_is_made_again(root, damage):
    sound = load(root)
    expected = np.array(sound.memory)
    (path,) = made()
    beside, manifests = path.with_suffix(".npz"), (cache.ROOT / "manifests").iterdir()
    status = path.stat()
    content = bytearray(path.read_bytes())
    time.sleep(0.02)
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif damage in ("cut", "empty"):
        path.write_bytes(content[: -5 if damage == "cut" else 0])
    elif damage == "no beside":
        beside.unlink()
    else:
        for file in [beside] if damage == "beside" else manifests:
            broken = bytearray(file.read_bytes())
            broken[len(broken) // 2] ^= 64
            file.write_bytes(broken)
    data = load(root)
    assert (data.memory == expected).all() and (data.counts == sound.counts).all()
    assert data.digest == sound.digest
    said = any("damaged or cut short; made again" in note for note in data.notes)
    assert said == (damage != "manifest")
    assert load(root).notes == []


def test_a_full_disk_is_one_line(root):
    """A limit on the size of files, as a full disk has: errno EFBIG in place of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        line = refusal(load, root, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the cache needs 5 MB" in line and "MB are free" in line and "XDG_CACHE_HOME moves it" in line
    assert not list(cache.ROOT.glob("*.np*")), "nothing is left behind"
    assert len(load(root, 512)) == 4


def test_a_cache_folder_that_cannot_be(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setattr(cache, "ROOT", root / "file" / "cache")
    assert "no cache can be made (Not a directory); XDG_CACHE_HOME moves it" in refusal(load, root)


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_a_cache_folder_that_can_only_be_read(root):
    sound = load(root)
    cache.ROOT.chmod(0o500)
    assert load(root).digest == sound.digest
    assert "no cache can be written there" in refusal(load, root, 24)
    cache.ROOT.chmod(0o700)


def read_slowly(sample, began):
    began.set()
    time.sleep(60)


def test_what_killed_runs_left_is_swept(root, monkeypatch):
    fork = multiprocessing.get_context("fork")
    faces = open_faces(root)
    began = fork.Event()
    faces.read_label = functools.partial(read_slowly, began=began)
    writer = fork.Process(target=CachedFaces, args=(faces, faces.splits["train"], 16))
    writer.start()
    assert began.wait(60)
    (left,) = cache.ROOT.glob("*.tmp")
    monkeypatch.setattr(cache, "STRAY", -1)
    load(root, 20)
    assert left.exists(), "somebody writes it"
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert left.exists() and not list(cache.ROOT.glob("*_16_*.npy"))
    monkeypatch.setattr(cache, "STRAY", 60)
    load(root, 24)
    assert left.exists(), "too young"
    monkeypatch.setattr(cache, "STRAY", -1)
    load(root, 28)
    assert not list(cache.ROOT.glob("*.tmp")) and len(load(root)) == 4


def test_several_processes_at_once(root):
    fork = multiprocessing.get_context("fork")
    with fork.Pool(4) as pool:
        loaded = pool.map(all_of, [root] * 8)
    assert len(set(loaded)) == 1 and len(made()) == 1
    assert not list(cache.ROOT.glob("*.tmp"))
    assert load(root).notes == []


def all_of(root):
    data = load(root)
    return data.digest, data.memory.tobytes(), tuple(data.notes)


def test_photos_that_change_while_they_are_read(root):
    faces = open_faces(root)

    def read_label(sample):
        Image.new("RGB", (24, 32)).save(root / "images/0.bmp")
        return folder.read_label(sample)

    faces.read_label = read_label
    with pytest.raises(UserError, match="changed while they were read"):
        CachedFaces(faces, faces.splits["train"], 16)


def test_masks_of_another_size_than_their_photos_are_told(root):
    for i in range(2):
        Image.open(root / f"labels/{i}.png").resize((12, 16), Image.NEAREST).save(root / f"labels/{i}.png")
    note = "2 of 4 masks are not of their photos' size (train/0, train/1): resized, nearest"
    assert load(root).notes == [note] and load(root).notes == [note]


@pytest.fixture
def counted(root):
    """`Faces` of which each skin is counted: upper half 7, lower half 3, masks in `ids/`."""
    (root.parent / "ids").mkdir()
    faces = open_faces(root)
    faces.things = {"skin": [1]}
    faces.read_instance = lambda sample: masks.read_mask(sample.instance)
    for i, sample in enumerate(faces.splits["train"]):
        path = str(root.parent / f"ids/{i}.png")
        label = np.asarray(Image.open(sample.label))
        ids = np.where(label == 1, 7, 0)
        ids[16:] = np.where(label[16:] == 1, 3, 0)
        save_ids(path, ids)
        faces.splits["train"][i] = sample._replace(instance=path)
    return faces


def save_ids(path, ids):
    Image.fromarray(ids.astype(np.uint8)).save(path)


def with_instances(faces):
    return CachedFaces(faces, faces.splits["train"], 16, instances=True)


def test_instances_are_kept_beside_the_mask_only_where_asked_for(root, counted):
    plain = load(root)
    first = made()
    assert CachedFaces(counted, counted.splits["train"], 16).digest == plain.digest and made() == first
    data = with_instances(counted)
    assert data.memory.shape == (4, 5, 16, 16) and len(made()) == 2 and data.digest != plain.digest
    assert (data.memory[:, :4] == plain.memory).all() and data.notes == []
    batch = data[[2, 0]]
    ids, skin = batch["instance"], batch["semantic"] == 1
    assert ids.dtype == torch.uint8 and ((ids > 0) == skin).all()
    assert (ids[:, :8][skin[:, :8]] == 7).all() and (ids[:, 8:][skin[:, 8:]] == 3).all()
    assert "instance" not in plain[[0]]
    bare = [s._replace(label=None, instance=None) for s in counted.splits["train"]]
    assert (CachedFaces(counted, bare, 16, instances=True)[[0]]["instance"] == 255).all()


def test_the_file_of_ids_counts_in_the_digest(counted):
    before = with_instances(counted)
    ids = np.asarray(Image.open(counted.splits["train"][2].instance))
    save_ids(counted.splits["train"][2].instance, np.where(ids == 7, 9, ids))
    after = with_instances(counted)
    assert [a == b for a, b in zip(before.digests, after.digests, strict=True)] == [True, True, False, True]
    assert before.digest != after.digest and (after[[2]]["instance"] == 9).any()


def test_ids_that_are_missing_or_on_a_few_pixels_of_another_class_are_unknown(counted):
    path = counted.splits["train"][1].instance
    ids = np.array(Image.open(path))
    ids[ids == 3] = 0  # a crowd
    ids[7, 4:12] = 7  # above the skin
    save_ids(path, ids)
    data = with_instances(counted)
    batch = data[[1]]
    assert (batch["instance"][0, 8:][batch["semantic"][0, 8:] == 1] == 255).all()
    assert (batch["instance"][batch["semantic"] == 0] != 7).all()
    assert (batch["instance"] == 7).any() and (batch["semantic"] == 1).any()
    assert data.notes == [
        "1 of 4 masks have pixels of a class that is counted without an id, or with one of another class "
        "(train/1): nobody knows their instance"
    ]


def test_masks_of_ids_that_contradict_the_classes_are_refused(counted):
    paths = [sample.instance for sample in counted.splits["train"]]
    ids = np.array(Image.open(paths[0]))
    save_ids(paths[0], ids[:24])
    ids[:8] = 7
    save_ids(paths[1], ids)
    Image.fromarray(np.full((32, 24), 300, np.uint16)).save(paths[2])
    with pytest.raises(UserError) as caught:
        with_instances(counted)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 4 samples are faulty:" and len(lines) == 4
    assert "0.png: 24x24, but the mask of classes 24x32; sizes must match" in lines[1]
    assert "1.png: instance 7 is 60% nothing that is counted and 40% skin; one instance is one" in lines[2]
    assert "2.png: mask of 16 bits with ids up to 300" in lines[3]
    counted.splits["train"][3] = counted.splits["train"][3]._replace(instance=None)
    assert "1 of 4 photos without a mask of instance ids (train/3)" in refusal(with_instances, counted)


def save_turned(root, orientation):
    for i in range(2):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = Image.open(root / f"images/{i}.bmp")
        photo.save(root / f"images/{i}.jpg", exif=exif)
        os.remove(root / f"images/{i}.bmp")


def test_a_photo_is_turned_and_its_mask_is_not(root):
    save_turned(root, 6)
    with pytest.raises(UserError) as caught:
        load(root)
    said = str(caught.value)
    assert said.startswith("2 of 4 samples are faulty")
    assert (
        "0.png: mask 24x32, photo 32x24; the photo is turned by its EXIF orientation 6, the mask is not"
        in said
    )
    assert "1.png: " in said and "turn the mask too (or strip EXIF)" in said


def test_photos_that_are_turned_without_a_trace_are_told_on_every_start(root):
    save_turned(root, 3)
    note = (
        "2 photos carry an EXIF orientation other than 1 (train/0, train/1): they are turned upright, and "
        "their masks are taken to be in the upright frame"
    )
    assert load(root).notes == [note] and load(root).notes == [note] and len(made()) == 1


def test_all_faults_are_told_at_once(root):
    (root / "images/0.bmp").write_bytes(b"")
    Image.fromarray(np.full((32, 24), 7, np.uint8)).save(root / "labels/1.png")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "labels/2.png")
    (root / "classes.json").write_text('{"classes": ["background", "skin"]}')
    with pytest.raises(UserError) as caught:
        load(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 4 samples are faulty:" and len(lines) == 4
    for line, said in zip(lines[1:], ("an empty file", "ids 7 are outside 0..1", "mask 32x32"), strict=True):
        assert said in line
    assert not list(cache.ROOT.glob("*.np*"))
