"""Faces decoded and resized once, kept as a uint8 memory map, keyed by the content of their files."""

import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import stat
import time
import typing

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.faces import counted, label_info, some
from datasets.images import read_photo
from datasets.masks import interpolated, on_borders, why_absent
from utils.errors import UserError
from utils.files import FULL, sha256, whole, write_whole
from utils.metrics import IGNORE_INDEX

VERSION = 4  # raise it when the pixels that this file writes change, or what the scan refuses
ROOT = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "reinforce-face"
own = None  # what this process has found itself, see `read_again`
SETTLED = 2  # seconds after which a file cannot change any more under the same time stamps
AGREE = 0.9  # the share of an instance's pixels that must be of one thing
STRAY = 60  # seconds after which a temporary file that nobody has locked is swept


class CachedFaces:
    """Samples as batches. `data[[3, 1]]` -> {"image": (2, 3, S, S) uint8, the data set's target: (2, S, S)
    uint8, "index": (2,)}; an unlabelled sample's mask is 255 throughout. With the target None there are no
    masks, in the cache neither, and no sample has a label. With instances there is "instance": (2, S, S)
    uint8, too, as `Faces.read_instance` gives it; see `instances_of`.

    counts: (N, K + 1) int64, pixels of each class and, last, of 255 in each mask as it is on disk; zeros
    where there is none. sizes: (N, 2) int64, width and height of each photo, upright. contents: N times 16
    hex digits, of what the file of each photo holds. digests: the same of what each photo and its mask hold.
    digest: of what labels mean, ids and digests. notes: for the user.
    """

    def __init__(self, faces, samples, size, instances=False):
        self.ids, self.paths = [s.id for s in samples], [s.image for s in samples]
        self.groups, self.yaws = [s.group for s in samples], [s.yaw for s in samples]
        self.target = faces.target
        self.contents, self.digests = digests_of(samples, instances)
        unused = () if instances else ("things", "scenes")
        meaning = {key: value for key, value in label_info(faces).items() if key not in unused}
        self.digest = _hash([meaning, self.ids, self.digests])
        path = ROOT / f"{faces.name}_{size}_{_hash([VERSION, size, self.digest])[:24]}.npy"
        self.notes = []
        found = opened(path)
        if found is None:
            if path.exists():
                self.notes.append(f"{path}: damaged or cut short; made again")
            with _turn(path):
                found = opened(path) or build(faces, samples, size, path, self.digests, instances)
        self.memory, self.counts, self.sizes, notes = found  # memory: (N, 3, 4 or 5, S, S)
        self.notes += notes

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        batch = torch.from_numpy(self.memory[np.asarray(index)])
        masks = {self.target: batch[:, 3]} if self.target else {}
        masks |= {"instance": batch[:, 4]} if batch.shape[1] == 5 else {}
        return {"image": batch[:, :3], **masks, "index": torch.tensor(index)}


# ---- what is cached


def opened(path):
    """(memory map, counts, sizes, notes) of the cache `path`, or None where there is none, or a damaged one.
    All of it is read and compared with its checksum only where its time stamps have changed since."""
    try:
        with np.load(_beside(path)) as file:
            beside = {key: file[key] for key in ("sha256", "counts", "sizes", "notes")}
        if contents([str(path)])[str(path)] != str(beside["sha256"]):
            return None
        return np.load(path, mmap_mode="r"), beside["counts"], beside["sizes"], beside["notes"].tolist()
    except Exception:  # of a damaged file np.load raises errors of any kind
        return None


def build(faces, samples, size, path, digests, instances=False):
    """Write the cache `path`, and return it as `opened` does: (N, 4, size, size) uint8, the photo (bilinear,
    antialiased) and its mask (nearest), both stretched to the square; (N, 3, size, size) without masks,
    (N, 5, size, size) with those of instances. Its checksum, counts, sizes and notes lie beside it, as .npz.
    digests: of the samples, which must not change meanwhile.

    Every file is read, so this is also the scan: all faults are listed at once, then refused.
    """
    _sweep()
    if not os.access(ROOT, os.W_OK):
        raise UserError(f"{ROOT}: no cache can be written there; XDG_CACHE_HOME moves it")
    if instances:
        _refuse_without(faces, samples)
    shape = (len(samples), 5 if instances else 4 if faces.target else 3, size, size)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=shape))
    counts = np.zeros((len(samples), len(faces.classes) + 1), np.int64)
    sizes = np.zeros((len(samples), 2), np.int64)
    borders = np.zeros((2, 256), np.int64)
    faults, turned, resized, unknown = [], [], [], []
    with whole(path) as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)  # tells `_sweep` that somebody writes here
        _reserve(file, len(header.getvalue()) + math.prod(shape))
        file.write(header.getvalue())
        checksum = hashlib.sha256(header.getvalue())
        for i, sample in enumerate(tqdm(samples, "reading faces", disable=None)):
            try:
                found = read(faces, sample, size, instances)
            except UserError as error:
                faults.append(str(error))
                continue
            counts[i], sizes[i] = found.counts, found.size
            borders += found.borders
            if found.orientation > 1 and sample.label is not None:
                turned.append(sample.id)
            if found.resized:
                resized.append(sample.id)
            if found.unknown:
                unknown.append(sample.id)
            row = found.row[: shape[1]]
            file.write(row)
            checksum.update(row)
        if faults:
            shown = "\n  ".join(faults[:20]) + ("\n  ..." if len(faults) > 20 else "")
            raise UserError(f"{len(faults)} of {len(samples)} samples are faulty:\n  {shown}")
        if interpolated(borders):
            raise UserError(
                f"{faces.name}: masks look interpolated: six ids or more show on borders alone, in all of "
                f"{len(samples)} masks; resize masks with nearest"
            )
        if digests_of(samples, instances)[1] != digests:
            raise UserError(f"{faces.name}: photos or masks changed while they were read; start again")
        notes = []
        if turned:
            notes.append(
                f"{len(turned)} photos carry an EXIF orientation other than 1 ({some(turned, 3)}): they are "
                "turned upright, and their masks are taken to be in the upright frame"
            )
        if resized:
            notes.append(
                f"{len(resized)} of {len(samples)} masks are not of their photos' size ({some(resized, 3)}): "
                "resized, nearest"
            )
        if unknown:
            notes.append(
                f"{len(unknown)} of {len(samples)} masks have pixels of a class that is counted without an "
                f"id, or with one of another class ({some(unknown, 3)}): nobody knows their instance"
            )
        with whole(_beside(path)) as beside:
            said = np.array(notes, str)
            np.savez(beside, sha256=checksum.hexdigest(), counts=counts, sizes=sizes, notes=said)
    return np.load(path, mmap_mode="r"), counts, sizes, notes


class Scanned(typing.NamedTuple):
    """What one sample holds."""

    row: np.ndarray  # (5, size, size) uint8: photo, mask, mask of instance ids
    counts: np.ndarray  # (K + 1,) pixels of each class and of 255 in the mask as it is
    borders: np.ndarray  # `on_borders` of the mask
    size: tuple[int, int]  # width and height of the photo, upright
    orientation: int  # of its EXIF
    resized: bool  # whether the mask has another size
    unknown: bool = False  # whether `instances_of` took an id for unknown


def read(faces, sample, size, instances=False):
    """One sample, `Scanned`. UserError names the file and its fault."""
    image, orientation = read_photo(sample.image)
    row = np.full((5, size, size), IGNORE_INDEX, np.uint8)
    row[:3] = np.asarray(image.resize((size, size), Image.BILINEAR)).transpose(2, 0, 1)
    k = len(faces.classes)
    if sample.label is None:
        nothing = np.zeros(k + 1, np.int64), np.zeros((2, 256), np.int64)
        return Scanned(row, *nothing, image.size, orientation, False)
    label = faces.read_label(sample)
    name = sample.label if isinstance(sample.label, str) else sample.id
    counts = np.bincount(label.ravel(), minlength=256)
    borders = on_borders(label)
    if unknown := [i for i in range(k, IGNORE_INDEX) if counts[i]]:
        blended = "looks interpolated; resize masks with nearest" if interpolated(borders) else ""
        reason = blended or why_absent(counts, faces.classes)
        raise UserError(
            f"{name}: ids {some(map(str, unknown))} are outside 0..{k - 1}; "
            + (reason or f"give them a class, or mark the pixels {IGNORE_INDEX}")
        )
    # masks may be smaller than photos (CelebAMask-HQ) but must show the same frame
    height, width = label.shape
    if abs(width / height - image.width / image.height) > 0.02:
        sizes = f"{name}: mask {width}x{height}, photo {image.width}x{image.height}; "
        if orientation >= 5 and abs(width / height - image.height / image.width) <= 0.02:
            turned = f"the photo is turned by its EXIF orientation {orientation}, the mask is not"
            raise UserError(f"{sizes}{turned}: turn the mask too (or strip EXIF)")
        raise UserError(f"{sizes}sizes must match")
    row[3] = np.asarray(Image.fromarray(label).resize((size, size), Image.NEAREST))
    doubtful = False
    if instances:
        ids, doubtful = instances_of(faces, sample, label)
        row[4] = np.asarray(Image.fromarray(ids).resize((size, size), Image.NEAREST))
    counts = counts[[*range(k), IGNORE_INDEX]]
    return Scanned(row, counts, borders, image.size, orientation, (width, height) != image.size, doubtful)


def instances_of(faces, sample, label):
    """((H, W) uint8 instance ids of a sample, whether some pixel's is unknown though its class is counted).

    label: (H, W) uint8, its classes. Refused: a mask of another size, and an id of which less than `AGREE`
    is of one thing. What else it covers is 255, and so are pixels of a class that is counted without an id.
    """
    ids = faces.read_instance(sample)
    if ids.shape != label.shape:
        sizes = [f"{width}x{height}" for height, width in (ids.shape, label.shape)]
        raise UserError(
            f"{sample.instance}: {sizes[0]}, but the mask of classes {sizes[1]}; sizes must match"
        )
    names = ["nothing that is counted", *faces.things]
    thing_of = np.zeros(256, np.uint8)  # which of the names, by class id
    for i, classes in enumerate(faces.things.values(), 1):
        thing_of[classes] = i
    thing, named = thing_of[label], (ids > 0) & (ids < IGNORE_INDEX) & (label != IGNORE_INDEX)
    pairs = ids[named].astype(np.int64) * len(names) + thing[named]
    pixels = np.bincount(pairs, minlength=256 * len(names)).reshape(256, -1)  # of each id, by what they show
    main = pixels.argmax(1)
    for i in np.flatnonzero(pixels.sum(1)):
        if main[i] == 0 or pixels[i, main[i]] < AGREE * pixels[i].sum():
            shown = [f"{pixels[i, j] / pixels[i].sum():.0%} {names[j]}" for j in pixels[i].argsort()[:-4:-1]]
            held = " and ".join(text for text in shown if not text.startswith("0%"))
            raise UserError(f"{sample.instance}: instance {i} is {held}; one instance is one thing")
    unknown = (ids == 0) & (thing > 0) | named & (thing != main[ids])
    return np.where(unknown, np.uint8(IGNORE_INDEX), ids), bool(unknown.any())


def _refuse_without(faces, samples):
    """A UserError where a labelled sample has no mask of instance ids."""
    bare = [s.id for s in samples if s.label is not None and s.instance is None]
    if bare or not faces.read_instance:
        of = f"{len(bare)} of {counted(len(samples), 'photo')}"
        raise UserError(
            f"{faces.name}: {of} without a mask of instance ids ({some(bare, 3)}): add them, or leave these "
            "photos out"
        )


@contextlib.contextmanager
def _turn(path):
    """One process at a time: of those that start together, the others find what the first one made."""
    try:
        ROOT.mkdir(parents=True, exist_ok=True)
        file = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{ROOT}: no cache can be made ({error.strerror}); XDG_CACHE_HOME moves it") from None
    with file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.with_suffix(".lock").unlink(missing_ok=True)


def _beside(path):
    return path.with_suffix(".npz")


def _reserve(file, size):
    """Take `size` bytes on the disk now: a full one is named before the work, not in the middle of it."""
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none; there the writes tell
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in FULL:
            free = shutil.disk_usage(ROOT).free // 2**20
            raise UserError(
                f"{ROOT}: the cache needs {size // 2**20 + 1} MB, {free} MB are free ({error.strerror}); "
                "XDG_CACHE_HOME moves it"
            ) from None


def _sweep():
    """Remove the temporary files of runs that were killed: those that nobody has locked."""
    for path in ROOT.glob("*.tmp"):
        with contextlib.suppress(OSError), open(path, "rb+") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > STRAY:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


# ---- what it was made from


def digests_of(samples, instances=False):
    """(contents, digests), each 16 hex digits for each sample: of its photo's file, and of all that its files
    hold, with `instances` the mask of ids, too. The name of a mask counts: of part masks it says the part."""
    listed = [[*s.label] if isinstance(s.label, tuple | list) else [s.label] for s in samples]
    if instances:
        listed = [[*label, s.instance] for s, label in zip(samples, listed, strict=True)]
    paths = [part for s, label in zip(samples, listed, strict=True) for part in (s.image, *label)]
    found = contents([part for part in paths if isinstance(part, str)])
    known = lambda part: [os.path.basename(part), found[part]] if isinstance(part, str) else repr(part)
    digests = [
        _hash([found[s.image], *map(known, label)])[:16] for s, label in zip(samples, listed, strict=True)
    ]
    return [found[s.image][:16] for s in samples], digests


def contents(paths):
    """{path: sha256 of the file, "" where there is none that can be read}. Manifests in the cache folder, one
    for each folder of files, keep what was found: a file is read again only where its size, its inode or a
    time stamp has changed, of which no user can set ctime."""
    here = os.getcwd()
    known, found, fresh = {}, {}, {}
    for path in tqdm(dict.fromkeys(paths), "checking files", delay=2, disable=None):
        folder, name = os.path.split(os.path.join(here, path))
        if folder not in known:
            known[folder] = _manifest(folder)
        try:
            status = os.stat(path)
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            *before, digest = known[folder].get(name, [""])
            if stamp != before:
                settled = time.time() - status.st_ctime > SETTLED
                digest = sha256(path) if stat.S_ISREG(status.st_mode) else ""
                if settled:
                    fresh.setdefault(folder, {})[name] = [*stamp, digest]
        except OSError:
            digest = ""  # the scan says what is wrong
        found[path] = digest
    for folder, names in fresh.items():
        _remember(folder, names)
    return found


def read_again():
    """From now on this process trusts no manifest: it reads each file once, and keeps that to itself."""
    global own
    own = {}


def _manifest(folder):
    """{name: [size, mtime, ctime, inode, sha256]} of files in a folder; empty where nothing is known, or the
    manifest is damaged."""
    if own is not None:
        return own.setdefault(folder, {})
    try:
        checksum, body = _place(folder).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return {}
    return json.loads(body) if _hash(body) == checksum else {}


def _remember(folder, names):
    """Add to the manifest of a folder. Of two processes that write at once the later one wins; what the other
    found is then read again."""
    known = _manifest(folder)
    known.update(names)
    if own is not None:
        return
    body = json.dumps(known)
    with contextlib.suppress(OSError, UserError):  # a cache that can only be read still serves
        _place(folder).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_place(folder), f"{_hash(body)}\n{body}")


def _place(folder):
    """Where the manifest of a folder is."""
    return ROOT / "manifests" / f"{_hash(folder)[:24]}.json"


def _hash(plain):
    """sha256 of plain data, in hex."""
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
