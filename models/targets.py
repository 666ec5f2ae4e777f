"""Targets of mine_styles.py: embedded phrases, and the file that they are in.

A file, as torch.save writes it: {"phrases": [as given], "classes": [name of a class, or None], "embeddings":
(N, D) float32, each of length 1, "tower": digest of the image encoder's tensors, "clip": name of the CLIP}.
"""

import torch

from models.styles import digest
from utils import checkpoint, files
from utils.errors import UserError


def with_classes(phrases, names=None, source=None):
    """[(phrase as given, name of a class or None, text to embed)]: a phrase with "{class}" in it gives one
    text for each class. names: of the classes; or source: a checkpoint of a parser of them. Raises UserError
    where there are classes and no phrase for them, or the other way round."""
    if source:
        names = checkpoint.load(source, target=("semantic", "panoptic"))["data"]["classes"]
    if bool(names) != any("{class}" in phrase for phrase in phrases):
        raise UserError(
            '--classes or --classes-of, and "{class}" in a phrase: one is of no use without the other'
        )
    rows = []
    for phrase in phrases:
        for name in names if "{class}" in phrase else [None]:
            rows.append((phrase, name, phrase.replace("{class}", (name or "").replace("_", " "))))
    return rows


def save(path, rows, embeddings, tower, clip):
    """Write the file. rows: of `with_classes`. embeddings: (N, D). tower: the tensors of the image encoder,
    without counters. clip: its name. Raises UserError."""
    if not embeddings.isfinite().all():
        raise UserError(f"{clip}: gives embeddings that are not finite; are its weights damaged?")
    found = {"phrases": [phrase for phrase, _, _ in rows], "classes": [name for _, name, _ in rows]}
    with files.whole(path) as file:
        torch.save({**found, "embeddings": embeddings, "tower": digest(tower), "clip": clip}, file)
    print(f"wrote {path}: {len(rows)} embeddings of {' | '.join(dict.fromkeys(found['phrases']))}")
