"""Photos and masks of any kind: read with the right values, or refused in one line that says why."""

import io
import os
import socket
import struct
import zlib

import numpy as np
import pytest
from conftest import FASSEG, refusal, write
from PIL import Image

from datasets import fasseg, open_faces
from datasets.cache import CachedFaces
from datasets.faces import Faces, Sample, side_pairs
from datasets.images import pictures, read_image, read_photo, read_square, unread_pictures
from datasets.masks import interpolated, on_borders, read_mask, why_absent
from datasets.splits import open_any
from utils.errors import UserError

GREY = np.tile(np.uint8(np.linspace(0, 255, 16).round()), (8, 1))  # 0, 17, ..., 255
COLOR = np.stack([GREY, GREY[:, ::-1], GREY // 2], -1)
CLEAR = np.where(GREY < 100, 0, 255).astype(np.uint8)  # alpha
ON_WHITE = np.where(CLEAR[..., None] == 0, 255, COLOR)
PALETTE = Image.fromarray(COLOR).quantize(16)


def saved(array, format="PNG", mode=None, many=False, **options):
    """An array, or an Image, as the bytes of a file, converted to `mode` first. many: and a second one."""
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    if many:
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - array)]}
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind, data, at=33):
    """A PNG with one more chunk, behind the header or at its end."""
    return PNG[:at] + chunk(kind, data) + PNG[at:]


def large(side):
    """A PNG of a few bytes that says it is side x side."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return PNG[:8] + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def deep(array):
    """RGB of 16 bits, which Pillow cannot write."""
    height, width, _ = array.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return PNG[:8] + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PNG, JPEG = saved(COLOR), saved(np.kron(COLOR, np.ones((8, 8, 1), np.uint8)), "JPEG")
NOISY = saved(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
BOMB = zlib.compress(bytes(20_000_000))
LOST = "cannot be decoded"
ACCEPTED = {  # name: (bytes, pixels that must come out; None: nearly `COLOR`, in a lossy format)
    "rgb.png": (PNG, COLOR),
    "png_called.jpg": (PNG, COLOR),
    "rgb.bmp": (saved(COLOR, "BMP"), COLOR),
    "rgb.tif": (saved(COLOR, "TIFF"), COLOR),
    "rgb.gif": (saved(COLOR, "GIF"), COLOR),
    "rgb.jp2": (saved(COLOR, "JPEG2000"), COLOR),
    "rgb.webp": (saved(COLOR, "WEBP", lossless=True), COLOR),
    "rgb.jpg": (JPEG, None),
    "cmyk.jpg": (saved(COLOR, "JPEG", "CMYK", quality=100, subsampling=0), None),
    "cmyk.tif": (saved(COLOR, "TIFF", "CMYK"), COLOR),
    "two_pictures.jpg": (saved(COLOR, "MPO", quality=100, subsampling=0, many=True), None),
    "grey.png": (saved(GREY), GREY),
    "one_bit.png": (saved(GREY > 99), (GREY > 99) * 255),
    "sixteen.png": (saved(GREY.astype(np.uint16) * 257), GREY),
    "sixteen_rgb.png": (deep(COLOR.astype(np.uint16) * 257), COLOR),
    "sixteen.tif": (saved(GREY.astype(np.uint16) * 257, "TIFF"), GREY),
    "float_1.tif": (saved(np.float32(GREY / 255), "TIFF"), GREY),
    "float_255.tif": (saved(np.float32(GREY), "TIFF"), GREY),
    "palette.png": (saved(PALETTE), COLOR),
    "palette_clear.png": (
        saved(PALETTE, transparency=PALETTE.getpixel((0, 0))),
        np.concatenate([COLOR[:, :1] * 0 + 255, COLOR[:, 1:]], 1),
    ),
    "rgba.png": (saved(np.dstack([COLOR, CLEAR])), ON_WHITE),
    "la.png": (saved(np.dstack([GREY, CLEAR])), np.where(CLEAR == 0, 255, GREY)),
    "one_pixel.png": (saved(COLOR[:1, :1]), COLOR[:1, :1]),
    "tall.png": (saved(np.zeros((5000, 1, 3), np.uint8)), np.zeros((5000, 1, 3))),
    "new\nline é.png": (PNG, COLOR),
}
REFUSED = {  # name: (bytes, or what makes the file; what is said)
    "empty.jpg": (b"", "an empty file"),
    "zeros.png": (bytes(5000), "nothing but zero bytes"),
    "page.jpg": (b"\n<!DOCTYPE html><p>404", "a web page"),
    "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not read; convert it"),
    "clip.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "noise.png": (np.random.default_rng(0).bytes(999), "or damaged"),
    "script.jpg": (saved(COLOR, "EPS"), "none of JPEG, PNG"),
    **{f"cut_{i}.jpg": (JPEG[: len(JPEG) * i // 6], "") for i in range(1, 6)},
    **{f"cut_{i}.png": (NOISY[: len(NOISY) * i // 6], "") for i in range(1, 6)},
    "flipped.png": (PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], LOST),
    "itxt.png": (with_chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB), "too large"),
    "ztxt_late.png": (with_chunk(b"zTXt", b"a\0\0" + BOMB, len(PNG) - 12), "too large"),
    "iccp.png": (with_chunk(b"iCCP", b"a\0\0" + BOMB), "too large"),
    "81_megapixels.png": (large(9000), "9000x9000 pixels, more than 64,000,000"),
    "100_megapixels.png": (large(10_000), "bomb"),
    "3600_megapixels.png": (large(60_000), "bomb"),
    "animation.gif": (saved(COLOR, "GIF", many=True), "animation"),
    "animation.png": (saved(COLOR, "PNG", many=True), "animation"),
    "animation.webp": (saved(COLOR, "WEBP", many=True), "animation"),
    "pages.tif": (saved(COLOR, "TIFF", many=True), "several pages"),
    "twelve.png": (saved(GREY.astype(np.uint16) * 16), "4080 is the most"),
    "twelve_rgb.png": (deep(COLOR.astype(np.uint16) * 16), "of which at most 12 are used"),
    "thirty_two.tif": (saved(GREY.astype(np.int32), "TIFF"), "32 bits"),
    "nan.tif": (saved(np.float32(np.where(GREY > 99, np.nan, GREY)), "TIFF"), "float values from nan"),
    "hdr.tif": (saved(np.float32(GREY) * 100, "TIFF"), "float values from 0 to 25500"),
    "folder.png": (os.mkdir, "a folder, pipe or device"),
    "pipe.png": (os.mkfifo, "a folder, pipe or device"),
    "zero.png": (lambda path: os.symlink("/dev/zero", path), "a folder, pipe or device"),
    "loop.png": (lambda path: os.symlink(path, path), "symbolic links"),
    "nowhere.png": (lambda path: os.symlink("absent", path), "broken link"),
    "caf\udce9.png": (PNG, r"caf\udce9.png: a name that is not UTF-8"),
}


def put(path, content):
    content(path) if callable(content) else path.write_bytes(content)
    return path


def socket_at(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # the name of a socket is short
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path.name)
    return listening


def scan(paths):
    samples = [Sample(str(i), str(path), None, str(i)) for i, path in enumerate(paths)]
    return CachedFaces(Faces("zoo", ["background", "face"], [], [], {}, None), samples, 8)


def test_photos_that_are_read(tmp_path):
    paths = [put(tmp_path / name, content) for name, (content, _) in ACCEPTED.items()]
    data = scan(paths)
    for i, (path, (_, expected)) in enumerate(zip(paths, ACCEPTED.values(), strict=True)):
        photo = read_image(path)
        if expected is None:
            small = np.asarray(photo.resize((16, 8), Image.BOX), float)
            assert abs(small - COLOR).mean() < 8, path.name
        else:
            channels = np.dstack([expected] * 3) if expected.ndim == 2 else expected
            assert (np.asarray(photo) == channels).all(), path.name
        assert tuple(data.sizes[i]) == photo.size
        assert (
            data.memory[i, :3] == np.asarray(photo.resize((8, 8), Image.BILINEAR)).transpose(2, 0, 1)
        ).all()
        assert (data.memory[i, :3] == read_square(path, 8).numpy()).all()


def test_photos_that_are_refused(tmp_path, monkeypatch):
    paths = [put(tmp_path / name, content) for name, (content, _) in REFUSED.items()]
    for path, (_, said) in zip(paths, REFUSED.values(), strict=True):
        with pytest.raises(UserError) as caught:
            read_image(path)
        line = str(caught.value)
        assert "\n" not in line and said in line and line.encode().startswith(str(tmp_path).encode()), (
            path.name
        )
    with socket_at(tmp_path / "socket.png", monkeypatch):
        assert "a folder, pipe or device" in refusal(read_image, tmp_path / "socket.png")
    good = put(tmp_path / "good.png", PNG)
    for first in range(0, len(paths), 20):  # a list shows twenty
        with pytest.raises(UserError) as caught:
            scan([good, *paths[first : first + 20]])
        said = str(caught.value)
        planted = len(paths[first : first + 20])
        assert said.startswith(f"{planted} of {planted + 1} samples are faulty")
        assert all(
            path.name.encode("ascii", "backslashreplace").decode() in said
            for path in paths[first : first + 20]
        )
        said.encode()  # and can be printed


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")
def test_a_photo_that_may_not_be_read(tmp_path):
    path = put(tmp_path / "a.png", PNG)
    path.chmod(0)
    assert "Permission denied" in refusal(read_image, path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photos_are_turned_upright(tmp_path, format):
    image = Image.fromarray(np.kron(COLOR, np.ones((8, 8, 1), np.uint8)))
    stored_as = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation: Image.Transpose of what was seen
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = image.transpose(Image.Transpose(stored_as[orientation])) if orientation > 1 else image
        stored.save(tmp_path / "a", format, exif=exif)
        photo, known = read_photo(tmp_path / "a")
        assert known == orientation and photo.size == image.size
        assert abs(np.asarray(photo, float) - np.asarray(image)).mean() < 8


# ---- masks

IDS = np.uint8([[0, 1, 2, 3, 255]])
COLORS = [(0, 0, 0), (230, 180, 150), (0, 90, 250), (0, 180, 90)]


def palette_mask(path, ids, colors):
    mask = Image.fromarray(np.uint8(ids)).convert("P")
    mask.putpalette([v for color in [*colors, *[(7, 7, 7)] * (256 - len(colors))] for v in color])
    mask.save(path)
    return path


def test_masks_of_more_kinds(tmp_path):
    seen = IDS != 255
    wide = np.dstack([np.where(seen, IDS, 0)] * 3 + [seen * 255]).astype(np.uint8)
    kinds = {
        "sixteen.png": IDS.astype(np.uint16),
        "sixteen.tif": IDS.astype(np.uint16),
        "rgba.png": wide,
        "la.png": wide[..., [0, 3]],
        "solid.png": np.dstack([IDS] * 3 + [np.full_like(IDS, 255)]),
    }
    for name, array in kinds.items():
        Image.fromarray(array).save(tmp_path / name)
        assert read_mask(tmp_path / name).tolist() == IDS.tolist(), name
        assert read_mask(tmp_path / name, COLORS).tolist() == IDS.tolist(), name
    Image.fromarray(np.dstack([np.uint8([*COLORS, (9, 9, 9)])[None], seen * np.uint8(255)])).save(
        tmp_path / "a.png"
    )
    assert read_mask(tmp_path / "a.png", COLORS).tolist() == IDS.tolist()
    assert "coloured mask" in refusal(read_mask, tmp_path / "a.png")


def test_masks_that_hold_no_ids(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(IDS.astype(np.uint16) * 100).save(path)
    assert "16 bits with ids up to 25500" in refusal(read_mask, path)
    Image.fromarray(np.dstack([IDS] * 3 + [IDS])).save(path)
    assert "half-transparent" in refusal(read_mask, path)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(IDS).save(path, exif=exif)
    assert "an EXIF orientation of its own" in refusal(read_mask, path)
    for format in ("JPEG", "JPEG2000", "AVIF"):
        Image.fromarray(np.repeat(IDS, 8, 0)).save(path, format)
        assert f"a {format} cannot hold class ids" in refusal(read_mask, path)
    four = Image.fromarray(IDS)
    four.save(path, "TIFF")
    data = bytearray(path.read_bytes())
    entry = data.index(struct.pack("<HHI", 258, 3, 1))  # BitsPerSample
    data[entry + 8] = 4
    path.write_bytes(data)
    assert "fewer than 8 bits" in refusal(read_mask, path)


def test_a_palette_in_another_order_is_read_by_colour(tmp_path):
    path, ids = tmp_path / "a.png", [[0, 1, 2, 3, 255]]
    order = [2, 0, 3, 1]
    palette_mask(path, ids, [COLORS[i] for i in order])
    assert read_mask(path, COLORS).tolist() == [[*order, 255]]
    assert read_mask(path).tolist() == ids, "no colours, no order"
    rounded = [tuple(v & 0xF8 for v in COLORS[i]) for i in order]
    assert read_mask(palette_mask(path, ids, rounded), COLORS).tolist() == [[*order, 255]]
    for colors in (COLORS, [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]):
        assert read_mask(palette_mask(path, ids, colors), COLORS).tolist() == ids
    palette_mask(path, ids, [COLORS[1], COLORS[0], (9, 99, 9), COLORS[3]])
    assert "of no class, or shown twice: 2 (9, 99, 9); save" in refusal(read_mask, path, COLORS)
    palette_mask(path, ids, [*COLORS[:3], (0, 0, 0)])  # entries that nobody set are black, as background is
    assert "shown twice: 0 (0, 0, 0), 3 (0, 0, 0); save" in refusal(read_mask, path, COLORS)
    image = Image.fromarray(np.uint8(COLORS)[np.uint8([[0, 0, 1, 1, 2, 3]])]).quantize(8)
    image.save(path)  # as annotation tools write what was painted
    assert (np.asarray(image) != [[0, 0, 1, 1, 2, 3]]).any()
    assert read_mask(path, COLORS).tolist() == [[0, 0, 1, 1, 2, 3]]


def counted(**pixels):
    counts = np.zeros(256, np.int64)
    for i, n in pixels.items():
        counts[int(i[1:])] = n
    return counts


@pytest.mark.parametrize(
    "counts, classes, said",
    [
        (
            counted(_0=50, _50=30, _100=20),
            "bg skin hair",
            "ids 0, 50, 100 look like grey levels of 3 classes; save 0, 1, 2",
        ),
        (
            counted(_0=50, _85=30, _170=2, _255=9),
            "bg skin hair hat",
            "ids 0, 85, 170 ... look like grey levels of 4",
        ),
        (counted(_0=50, _2=30), "bg skin", "save 0, 1"),
        (counted(_0=54, _255=46), "bg face", "covers 46 % of all pixels: save face as 1"),
        (counted(_0=54, _255=46), "bg skin hair", "46 % of all pixels: save each class as its id"),
        (counted(_255=9), "bg face", "covers 100 % of all pixels"),
        (counted(_0=50, _1=30, _255=20), "bg skin hair", "save hair as 2"),
        (counted(_1=50, _2=30), "bg face", "subtract 1"),
        (counted(_0=900, _200=800, **{f"_{i}": 3 for i in range(20, 190, 7)}), "bg face", "interpolated"),
        (counted(_0=900, **{f"_{i}": 3 for i in range(1, 255)}), "bg face", "interpolated"),
        # nothing to guess: classes that nobody listed, a class that happens to be absent
        (counted(_0=900, **{f"_{i}": 3 for i in range(1, 19)}), "bg face", ""),
        (counted(_0=900, _1=90, _3=30, _255=9), "bg skin hair hat", ""),
        (counted(_0=900, _1=90), "bg skin", ""),
    ],
)
def test_why_masks_hold_other_ids(counts, classes, said):
    reason = why_absent(counts, classes.split())
    assert said in reason and bool(said) == bool(reason), reason


def test_interpolated_and_grey_masks_are_named(tmp_path):
    """Real ones: resized as most libraries do unless told otherwise."""
    ids = np.zeros((64, 48), np.uint8)
    ids[10:54, 8:40] = 100
    ids[24:28, 14:20] = 200
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((160, 120, 3), np.uint8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(ids).resize((120, 160), Image.BILINEAR).save(tmp_path / f"labels/{name}.png")
    assert "looks interpolated" in refusal(open_faces, tmp_path)
    info = write(tmp_path / "classes.json", {"classes": ["background", "skin", "eyes"]})
    faces = open_faces(tmp_path)
    with pytest.raises(UserError, match="(?s)a.png: ids .*looks interpolated.*b.png: ids .*interpolated"):
        CachedFaces(faces, faces.splits["train"], 16)
    for name in "ab":
        Image.fromarray(ids).save(tmp_path / f"labels/{name}.png")
    with pytest.raises(
        UserError, match="ids 100, 200 are outside 0..2; ids 0, 100, 200 look like grey levels"
    ):
        CachedFaces(faces, faces.splits["train"], 16)
    info.unlink()
    assert "no classes.json, and as class ids the masks make no sense: ids 0, 100" in refusal(
        open_faces, tmp_path
    )


def test_masks_that_are_interpolated_between_classes_that_there_are(tmp_path):
    """Every id is one of a class; ten of them show on the borders alone."""
    face = np.where(np.hypot(*np.mgrid[-20:20, -20:20]) < 13, 11, 0).astype(np.uint8)
    for kind in (Image.BILINEAR, Image.BICUBIC):
        assert interpolated(on_borders(np.asarray(Image.fromarray(face).resize((100, 100), kind))))
    assert not interpolated(on_borders(np.asarray(Image.fromarray(face).resize((100, 100), Image.NEAREST))))
    rings = np.uint8(np.hypot(*np.mgrid[-60:60, -60:60]) // 6)  # of ten classes, each 6 pixels wide
    rings[rings > 9] = 255
    assert not interpolated(on_borders(rings)) and not interpolated(on_borders(face + np.uint8(255 - 11)))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images/a.png")
    Image.fromarray(face).resize((100, 100), Image.BILINEAR).save(tmp_path / "labels/a.png")
    write(tmp_path / "classes.json", {"classes": [f"class {i}" for i in range(12)]})
    faces = open_faces(tmp_path)
    with pytest.raises(UserError, match="masks look interpolated"):
        CachedFaces(faces, faces.splits["train"], 16)


@pytest.mark.parametrize("name", ["fasseg/V2", "fasseg/V3", "facesynthetics", "coco128_voc", "voc2007mini"])
def test_no_real_mask_looks_interpolated(name):
    if not (FASSEG.parent / name).is_dir():
        pytest.skip(f"no {name} in {FASSEG.parent}; FACES_DATA")
    faces = open_faces(FASSEG.parent / name)
    labelled = [s for samples in faces.splits.values() for s in samples if s.label]
    for sample in labelled[:: 1 + len(labelled) // 50]:
        assert not interpolated(on_borders(faces.read_label(sample))), sample.id
        if name.startswith("fasseg"):  # coloured, and anti-aliased
            assert (read_mask(sample.label, fasseg.COLORS) < 6).mean() > 0.9


def test_an_area_of_a_colour_that_no_class_has(tmp_path):
    path = tmp_path / "a.png"
    mask = np.zeros((40, 40, 3), np.uint8)
    mask[8:32, 10:30] = COLORS[1]
    mask[20, :, 2] = 90  # a border
    mask[0:3, 0:30] = 255
    Image.fromarray(mask).save(path)
    ids = read_mask(path, COLORS)
    assert (ids[:3, :30] == 255).all() and ids[10, 12] == 1, "white is what nobody knows"
    mask[14:17, 14:17] = 0, 250, 250
    Image.fromarray(mask).save(path)
    assert "0.6 % of it has the colour [0, 250, 250], which no class has" in refusal(read_mask, path, COLORS)
    assert (read_mask(path, [*COLORS, (0, 250, 250)])[14:17, 14:17] == len(COLORS)).all()
    clear = np.dstack([mask, np.full((40, 40), 255, np.uint8)])
    clear[12:20, 12:20, 3] = 0
    Image.fromarray(clear).save(path)
    assert (read_mask(path, COLORS[1:] + [(0, 0, 0)])[12:20, 12:20] == 255).all(), "transparent"


# ---- sides, folders


@pytest.mark.parametrize(
    "classes, pairs",
    [
        ("background,left eye,right eye", [(1, 2)]),
        ("l_eye,nose,r_eye,l_brow,r_brow,l_lip,u_lip,ear_r,neck_l", [(0, 2), (3, 4)]),
        ("Left_Eye,right-eye,eyeL,eyeR,LBrow,RBrow", [(0, 1), (2, 3), (4, 5)]),
        ("lefteye,righteye,leye,reye,EAR_L,EAR_R", [(0, 1), (2, 3), (4, 5)]),
        ("left lip,right lip,upper lip", [(0, 1)]),
        ("left eye,nose,bright,lip", []),
        ("class 0,class 1", []),
    ],
)
def test_side_pairs(classes, pairs):
    assert side_pairs(classes.split(",")) == pairs


def test_sided_classes_are_paired_unless_told_otherwise(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(COLOR[:1, :5]).save(tmp_path / "images/a.png")
    Image.fromarray(IDS).save(tmp_path / "labels/a.png")
    info = {"classes": ["background", "skin", "left eye", "right eye"]}
    write(tmp_path / "classes.json", info)
    faces = open_faces(tmp_path)
    assert faces.flip_pairs == [(2, 3)]
    assert any("a flip swaps left eye with right eye, by their names" in note for note in faces.notes)
    write(tmp_path / "classes.json", info | {"flip_pairs": []})
    faces = open_faces(tmp_path)
    assert faces.flip_pairs == [] and not faces.notes


def test_what_is_no_photo_here_is_named_with_what_to_do(tmp_path):
    for name in ("b.HEIC", "c.dng", "d.mp4", ".e.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    put(tmp_path / "a.png", PNG)
    assert unread_pictures(tmp_path) == [
        "b.HEIC: HEIC is not read; convert it to JPEG or PNG",
        "c.dng: DNG is not read; convert it to JPEG or PNG",
        "d.mp4: MP4 is not read; save the frames that matter to JPEG or PNG",
    ]
    assert list(pictures(tmp_path)) == ["a"]
    (note,) = open_any(tmp_path).notes
    assert "b.HEIC: HEIC is not read" in note
    mine = tmp_path / "mine"
    for folder in ("images", "labels"):
        (mine / folder).mkdir(parents=True)
    put(mine / "images/a.png", PNG)
    Image.fromarray(np.zeros((8, 16), np.uint8) + np.uint8([0, 1] * 8)).save(mine / "labels/a.png")
    (mine / "images/a.heic").write_bytes(b"?")
    assert any("a.heic: HEIC is not read" in note for note in open_faces(mine).notes)
