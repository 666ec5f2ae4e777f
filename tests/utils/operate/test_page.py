"""The operator's page, read as a browser reads it: whole, alone, escaped, and with all that it was told."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from utils.operate.page import page

ALONE = {"br", "img", "link", "meta"}  # those of the page that have no end tag
INLINE = {"a", "b", "code", "i", "span"}  # others stand apart from the words around them
FOREIGN = """</td></code><script>alert(1)</script><img src=x onerror='a()'> "'&amp; """
LISTS = ("watch", "strangest", "differences", "legend", "decisions", "lineage", "history")
NONE = {name: [] for name in LISTS}


class Reader(html.parser.HTMLParser):
    """elements: [(tag, attributes, names of the open elements around it)]; words: all text of the body."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.words, self.errors = [], [], [], []
        self.feed(source)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        self.words.append("" if tag in INLINE else " ")
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append((tag, self.getpos()))
        self.words.append("" if tag in INLINE else " ")

    def handle_data(self, data):
        if "body" in self.open:
            self.words.append(data)

    def all(self, tag, **wanted):
        found = [(attrs, around) for name, attrs, around in self.elements if name == tag]
        return [(attrs, around) for attrs, around in found if wanted.items() <= attrs.items()]


def batch(number, status="PASS", d=0.3123, critical=0.44):
    return {
        "batch": number,
        "time": f"2026-11-{number % 28 + 1:02d} 08:00 UTC",
        "photos": f"incoming/{number:03d}",
        "num_photos": 320 + number,
        "people": 640 + number,
        "status": status,
        "d_max": d,
        "d_critical": critical,
        "p": 0.0123,
        "feature": f"saturation{number}",
        "verdict": f"Sentence on batch {number}.",
    }


def decision(number, verdict, guard, audit):
    return {
        "time": f"2026-11-2{number} 10:00 UTC",
        "candidate": f"ops/improve/{number:03d}",
        "sha256": f"{number}" * 64,
        "k": 70 + number,
        "batches": [number, 40 + number],
        "verdict": verdict,
        "why": f"Sentence on candidate {number}.",
        "guard": guard,
        "audit": audit,
    }


def facts(size=32):
    noise = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8)  # no picture is larger
    guard = {
        "differences": {"ann": 0.02, "bob": -0.0312},
        "mean": -0.0056,
        "bound": -0.0234,
        "level": 0.05,
        "people": 2,
    }
    audit = {
        "differences": {"cyd": 0.0411},
        "mean": 0.0411,
        "bound": float("-inf"),
        "level": 0.0304,
        "people": 1,
    }
    photos = {"photo": noise[0], "nearest": noise[1]}
    masks = {"photo": noise[2], "champion": noise[3], "candidate": noise[4]}
    return {
        "ops": "ops",
        "time": "2026-11-26 12:00 UTC",
        "champion": {
            "version": 29,
            "sha256": "ab" * 32,
            "run": "runs/champion",
            "time": "2026-11-25 09:12 UTC",
            "decision": "Sentence on the champion.",
        },
        "fallback": "champion.json is damaged.",
        "state": {
            "drift": "yes",
            "sentence": "Two rejections in a row.",
            "next": "python operate.py improve ops",
        },
        "alpha": 0.05,
        "delta": 0.01,
        "watch": [
            batch(1),
            batch(2, "REJECT", 0.9),
            batch(3, "UNDERPOWERED", 0.5, None),
            batch(4, "BLIND", 0.2, None),
        ],
        "strangest": [
            {**photos, "id": f"p{i}.jpg", "distance": 7 + i / 8, "nearest_id": f"r{i}.jpg"} for i in range(12)
        ],
        "differences": [{**masks, "id": f"m{i}.png", "share": 0.21 + i / 100} for i in range(8)],
        "legend": [("hair", (1, 2, 3)), ("skin", np.uint8([200, 150, 120]))],
        "decisions": [
            decision(1, "refused", guard, audit),
            decision(2, "waits", guard, None),
            decision(3, "better", {**guard, "bound": -0.0071}, audit),
        ],
        "lineage": [
            {
                "depth": d,
                "what": f"train_{d}.py",
                "out": f"runs/{i}",
                "sha256": "cd" * 32,
                "data": f"{17 + i} photos",
            }
            for i, d in enumerate([0, 1, 2, 1])
        ],
        "history": [
            {
                "version": 31 - i,
                "time": f"2026-10-0{i + 1} 09:12 UTC",
                "sha256": "ef" * 32,
                "run": f"runs/v{31 - i}",
                "decision": f"Decision {31 - i}.",
                "rollback": f"python operate.py rollback ops {31 - i}" if i else None,
            }
            for i in range(3)
        ],
    }


def mapped(value, change):
    """Facts with `change` made to every text in them but the words whose meaning is fixed."""
    if isinstance(value, dict):
        fixed = ("drift", "status", "sha256")
        return {k: v if k in fixed else mapped(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


@pytest.fixture(scope="module")
def source():
    return page(facts())


@pytest.mark.parametrize("empty", [False, True])
def test_one_file_that_needs_nothing_else(source, empty):
    if empty:
        source = page({**facts(), **NONE, "fallback": None})
    read = Reader(source)
    assert not read.errors and not read.open, "well nested"
    written = re.sub(r"base64,[\w+/=]+", "", source)
    assert not re.search(r"https?:|//\w|url\(|@import|<script|<iframe", written)
    ids = [attrs["id"] for _, attrs, _ in read.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs, _ in read.elements:
        for key in ("src", "href"):
            value = attrs.get(key, "data:")
            assert value.startswith("data:") or value[0] == "#" and value[1:] in ids
    assert all(attrs["alt"] for attrs, _ in read.all("img"))
    assert len(read.all("table")) == len(read.all("caption"))
    assert source == (page({**facts(), **NONE, "fallback": None}) if empty else page(facts())), "same bytes"


def test_everything_that_it_was_told_is_shown(source):
    shown = Reader(source).text
    given = facts()
    texts = [given["fallback"], *given["state"].values(), *map(str, given["champion"].values())]
    for row in given["watch"]:
        texts += [row[key] for key in ("time", "photos", "feature", "verdict", "status")]
        texts += [f"{row['num_photos']} photos, {row['people']} people"]
    texts += ["0.312", "0.44", "0.0123", "level 0.05"]  # D, critical, p, alpha
    for row in given["strangest"]:
        texts += [row["id"], row["nearest_id"], f"distance {row['distance']:.3g}"]
    texts += [f"m{i}.png: {21 + i}.0% of pixels differ" for i in range(8)] + ["hair", "skin"]
    for row in given["decisions"]:
        batches = ", ".join(map(str, row["batches"]))
        texts += [row["time"], row["candidate"], row["sha256"][:12], row["verdict"], row["why"], batches]
    texts += ["number 71", "number 72", "number 73", "people: 2, level: 0.05", "people: 1, level: 0.0304"]
    texts += [
        "bob −0.0312",
        "ann +0.0200",
        "cyd +0.0411",
        "mean −0.0056",
        "lower bound −0.0234, not above −0.0100",
    ]
    texts += ["lower bound −0.0071, above −0.0100", "lower bound unknown, not above 0", "not measured"]
    for row in given["lineage"]:
        texts += [row["what"], row["out"], row["data"]]
    for row in given["history"]:
        texts += [row["time"], row["run"], row["decision"], row["rollback"] or ""]
    assert [words for words in texts if words not in shown] == []
    assert shown.index("bob −") < shown.index("ann +"), "the worst first"


def test_order_of_the_page(source):
    order = [
        facts()["state"]["next"],
        "Sentence on batch 4",
        "Sentence on batch 1",
        "p0.jpg",
        "lower bound −0.0071",
    ]
    order += ["m0.png", "ops/improve/002", "ops/improve/001", "Decision 31", "Decision 29", "train_0.py"]
    shown = Reader(source).text
    spots = [shown.index(words) for words in order]
    assert spots == sorted(spots)


def test_foreign_text_stays_text(source):
    read = Reader(page(mapped(facts(), lambda words: words + FOREIGN)))
    plain = Reader(source)
    assert [tag for tag, _, _ in read.elements] == [tag for tag, _, _ in plain.elements] and not read.errors
    assert {key for _, attrs, _ in read.elements for key in attrs} == {
        key for _, attrs, _ in plain.elements for key in attrs
    }
    strings = []
    mapped(facts(), strings.append)
    assert read.text.count(" ".join(FOREIGN.split())) >= len(strings)


def test_a_name_that_is_no_unicode_can_be_written():
    given = facts()
    given["strangest"][0]["id"] = b"f\xe9e.jpg".decode("utf-8", "surrogateescape")
    assert rb"f\udce9e.jpg" in page(given).encode()


def test_pictures_are_those_given(source):
    given = facts()
    found = {}
    for attrs, _ in Reader(source).all("img"):
        kind, data = re.fullmatch(r"data:image/(jpeg|png);base64,(.+)", attrs["src"]).groups()
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.format.lower() == kind and image.size == (32, 32)
        assert (attrs["width"], attrs["height"]) == ("32", "32")
        found[attrs["alt"]] = kind, np.asarray(image).astype(int)
    assert len(found) == 2 * 12 + 3 * 8
    for model in ("champion", "candidate"):
        kind, pixels = found[f"mask of the {model} on m0.png"]
        assert kind == "png" and (pixels == given["differences"][0][model]).all()
    wanted = given["strangest"][0]
    for alt, array in (("photo p0.jpg", wanted["photo"]), ("reference photo r0.jpg", wanted["nearest"])):
        kind, pixels = found[alt]
        near, far = (abs(blocks(pixels) - blocks(other)).mean() for other in (array, array[::-1]))
        assert kind == "jpeg" and near < far / 4


def blocks(pixels):
    """(32, 32, 3) -> means of 4 x 4 pixels, which JPEG keeps even of noise."""
    return pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))


def test_the_file_stays_small():
    given = facts(128)
    given["watch"] = [batch(i) for i in range(300)]
    assert len(page(given).encode()) < 2e6  # of noise: faces take a third of it
    wide = {**given["strangest"][0], "photo": np.zeros((400, 800, 3), np.uint8)}
    images = Reader(page({**facts(), **NONE, "strangest": [wide]})).all("img")
    assert (images[0][0]["width"], images[0][0]["height"]) == ("192", "96"), "large ones are reduced"


def test_the_chart_has_each_batch_and_its_critical_line(source):
    read = Reader(source)
    marks = [attrs for attrs, around in read.all("use") if "ul" not in around]
    assert [mark["href"] for mark in marks] == ["#PASS", "#REJECT", "#UNDERPOWERED", "#BLIND"]
    across = [float(mark["x"].rstrip("%")) for mark in marks]
    assert across == [12.5, 37.5, 62.5, 87.5]
    up = [float(mark["y"]) for mark in marks]
    assert up[1] < up[2] < up[0] < up[3], "a larger distance is higher"
    lines = [
        attrs for attrs, around in read.all("line", stroke="var(--blue)") if not {"ul", "table"} & {*around}
    ]
    assert [(line["x1"], line["x2"]) for line in lines] == [("0.00%", "25.00%"), ("25.00%", "50.00%")]
    assert up[1] < float(lines[0]["y1"]) < up[0], "between the rejected batch and the other"


def test_hundreds_of_batches_are_folded():
    read = Reader(page({**facts(), **NONE, "watch": [batch(i) for i in range(1, 201)]}))
    assert len([0 for attrs, around in read.all("use") if "ul" not in around]) == 200
    rows = [around.count("details") for _, around in read.all("tr") if "tbody" in around]
    assert rows == [0] * 8 + [1] * 192 and "192 older" in read.text
    assert (
        read.text.index("Sentence on batch 200.") < read.text.index("192 older") < read.text.index("batch 1.")
    )


def test_lineage_is_a_tree(source):
    around = [around for tag, _, around in Reader(source).elements if tag == "div" and around[-1] == "li"]
    assert [each.count("ul") for each in around] == [1, 2, 3, 2]
