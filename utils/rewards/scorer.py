"""Scores that somebody else gives: asked once each, counted, and kept on disk.

A scorer is a function of your own, `FUNCTION(masks, photos)`: masks (B, H, W) uint8 numpy array of class
ids, in the frame of the photo stretched to H x W; photos: the paths of the B photo files. It returns B
numbers, or B rows of K: one for each class, NaN where a class was not judged.
"""

import hashlib
import json
import pathlib
import traceback

import numpy as np
import torch

from utils.cli import named_weights
from utils.errors import UserError
from utils.rewards.rewards import LABEL_FREE, label_free, load


def judge(words, classes):
    """["my.py:score=1", "anatomy=0.1"] -> a scorer function, their weighted sum. classes: names."""
    parts = [
        (weight, label_free(name, classes) if name in LABEL_FREE else load(name, LABEL_FREE))
        for name, weight in named_weights(words, "reward").items()
    ]

    def function(masks, photos):
        total = 0.0
        shapes = {(len(masks),), (len(masks), 1), (len(masks), len(classes))}
        for weight, score in parts:
            try:
                answer = np.asarray(score(masks, photos), np.float64)
            except UserError:
                raise
            except Exception as error:  # whatever a user's scorer, or its server, may do
                last = traceback.extract_tb(error.__traceback__)[-1]
                raise UserError(
                    f"reward {' '.join(words)}: it failed ({error!r}, {last.filename}:{last.lineno}); "
                    "the answers it gave are kept for when the run goes on"
                ) from error
            if answer.shape not in shapes:
                raise UserError(
                    f"reward {' '.join(words)}: for {len(masks)} masks it gave an array of "
                    f"shape {answer.shape}; need one number for each mask, or one for each of "
                    f"the {len(classes)} classes"
                )
            total = total + weight * answer.reshape(len(masks), -1)
        return total

    return function


class Scorer:
    """scorer(masks, photos) -> (B, C) float64, C = 1 or the number of classes.

    function: what `judge` builds, (B, H, W) uint8 and B paths -> (B, C). name: a part of the
    key, so that answers of another scorer are never taken for its own.
    A mask that was asked about before is answered from memory, which `path` keeps across runs and
    kills: one line of JSON for each answer. asked: how many masks were submitted, ever.
    """

    def __init__(self, function, name, path, budget=None):
        self.function, self.name, self.path, self.budget = function, name, pathlib.Path(path), budget
        self.known = {}
        text = self.path.read_text() if self.path.is_file() else ""
        self.torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line, torn by a kill: that answer will be asked for again
            self.known[row["key"]] = row["score"]

    @property
    def asked(self):
        return len(self.known)

    def left(self):
        """How many more masks may be submitted; infinity without a budget."""
        return float("inf") if self.budget is None else self.budget - self.asked

    def __call__(self, masks, photos):
        array = masks.to(torch.uint8).cpu().numpy()
        pairs = zip(photos, array, strict=True)
        keys = [
            hashlib.sha256(f"{self.name}\0{photo}\0".encode() + a.tobytes()).hexdigest() for photo, a in pairs
        ]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if len(new) > self.left():
            raise UserError(f"score budget {self.budget}: {len(new)} more scores would exceed it")
        if new:
            rows = list(new.values())
            answers = np.asarray(self.function(array[rows], [photos[i] for i in rows]), np.float64)
            if np.isinf(answers).any() or np.isnan(answers).all(1).any():
                raise UserError("the scorer gave no finite number for a mask; nothing of it was kept")
            lines = [{"key": k, "score": row} for k, row in zip(new, answers.tolist(), strict=True)]
            with open(self.path, "a") as file:
                file.write("\n" * self.torn + "".join(json.dumps(line) + "\n" for line in lines))
            self.torn = False
            self.known |= {line["key"]: line["score"] for line in lines}
        return torch.tensor([self.known[key] for key in keys], dtype=torch.double, device=masks.device)
