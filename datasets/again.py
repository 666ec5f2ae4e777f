"""What a training run was given, opened once more as its script did, by its flags."""

from datasets import batches, labelled, splits, summary


def identify_again(flags, split, classes=None, instances=False):
    """`summary.identify` of a split as it is today. Raises UserError where it cannot be opened.

    flags: {name: value} of the run. classes: names, of a run whose photos have no masks (and its splits are
    `train` and `val`); None: those of the data. instances: whether masks of instances were read.
    """
    classifies = "head" in flags
    if classes:
        opened = splits.open_photos(flags["unlabelled"], classes, flags["val_fraction"])
        opened.splits["train"] = opened.splits.pop("unlabelled")
    elif classifies:
        opened = labelled.open_images(flags["data"], flags["val_fraction"], flags.get("leave_out"))
    else:
        keys = ("data", "classes", "part_order", "val_fraction", "ids")
        opened = splits.open_data(*(flags[key] for key in keys))
    classes = classes or opened.classes
    if split == "unlabelled":
        open_unlabelled = (labelled if classifies else splits).open_unlabelled
        opened = open_unlabelled(flags["unlabelled"], classes, flags["val_fraction"], opened, flags["data"])
    limit = flags["limit"] if split == "train" else None
    how = opened, split, flags["size"], flags["seed"], limit
    data = labelled.load(*how) if classifies else batches.load(*how, instances=instances)
    return summary.identify(data, classes)
