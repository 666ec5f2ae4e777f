"""Photos that come in, and those that judge a parser: who may judge, whom to label, which are strange."""

import scipy  # its parts load when they are first used
import torch

from datasets.cache import contents, digests_of
from datasets.faces import limit, some
from datasets.images import pictures, read_square, to_float
from datasets.sides import training_photos
from datasets.splits import open_any, open_data
from utils import lineage
from utils.errors import UserError
from utils.ks import features

TO_LABEL = 2  # photos of a person
PEOPLE = 16  # at most
SHARE = 0.25  # of all photos, at most


def without_test(faces):
    """All samples but the test split's, and but photos of the people in it."""
    people = {s.group for s in faces.splits.get("test", [])}
    return [s for samples in faces.splits.values() for s in samples if s.group not in people]


def short_digests(samples):
    """{path: 16 hex digits} of the samples' photo files, as `lineage.seen` knows them."""
    return {path: digest[:16] for path, digest in contents([s.image for s in samples]).items()}


def digests(samples):
    """{id: 16 hex digits} of what the files of a labelled sample hold, photo and mask."""
    return dict(zip([s.id for s in samples], digests_of(samples)[1], strict=True))


def labelled_photos(folder, classes):
    """(Faces, samples) of all labelled photos of a data set, of whatever split. A UserError where there are
    none, or the classes are others than these."""
    faces = open_any(folder)
    samples = [s for each in faces.splits.values() for s in each if s.label is not None]
    if not samples:
        raise UserError(f"{folder}: no labelled photos")
    if list(faces.classes) != list(classes):
        raise UserError(
            f"{folder}: the classes are {' '.join(faces.classes)}; those of the parser {' '.join(classes)}"
        )
    return faces, samples


def refuse_seen(samples, state, file):
    """A UserError where a photo trained or validated the checkpoint `state` of `file`, or what it came from,
    or where that is not known."""
    seen = lineage.seen(state)
    if seen is None:
        raise UserError(
            f"{file}: which photos it has seen is not known, since it, or what it came from, is older than "
            "lineage.json; train it again"
        )
    digests = short_digests(samples)
    if known := [s.image for s in samples if digests[s.image] in seen]:
        raise UserError(
            f"{len(known)} of {len(samples)} photos trained or validated {file}, or what it came from: "
            f"{some(known, 3)}; judge it on others"
        )


def to_label(samples):
    """The samples that are kept from training to be labelled: spread over people and yaw, `TO_LABEL` of a
    person."""
    if not samples:
        return []
    people = min(len({s.group for s in samples}), PEOPLE)
    return limit(samples, max(1, min(TO_LABEL * people, int(SHARE * len(samples)))), 0)


def ids_of(flags):
    """{"train": ids, "val": ids} of a run with these flags {name: value} where --ids or --limit says which
    photos train; None where all do."""
    if not flags.get("limit") and not flags.get("ids"):
        return None
    train = training_photos(flags["data"], flags | {"unlabelled": None})
    if flags.get("limit"):
        train = limit(train, flags["limit"], flags["seed"])
    faces = open_data(flags["data"], val_fraction=flags["val_fraction"], ids=flags.get("ids"))
    held = faces.splits.get("val", [])
    return {"train": [s.id for s in train]} | ({"val": [s.id for s in held]} if held else {})


def strangest(folder, reference, count, size):
    """[{"photo", "distance", "nearest"}] of the photos in a folder that are farthest from their nearest one
    in the folder `reference`, paths; by the numbers of `features.pixel`, each divided by its standard
    deviation over the reference."""
    paths = [sorted(pictures(each).values()) for each in (folder, reference)]
    new, old = (
        features.pixel(to_float(torch.stack([read_square(path, size) for path in each]))).double()
        for each in paths
    )
    gaps = scipy.spatial.distance.cdist(*(rows / old.std(0).clamp_min(1e-6) for rows in (new, old)))
    return [
        {"photo": paths[0][i], "distance": float(gaps[i].min()), "nearest": paths[1][gaps[i].argmin()]}
        for i in gaps.min(1).argsort()[::-1][:count].tolist()
    ]
