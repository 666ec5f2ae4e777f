"""Scores that somebody else gives: asked once each, counted, and on disk before the next is asked for.

A scorer is a function of your own, `FUNCTION(masks, photos)`: masks (B, H, W) uint8 numpy array of class
ids, in the frame of the photo stretched to H x W; photos: the paths of the B photo files. It returns one
number for each mask, or one for each class, NaN where a class was not judged; and is asked about one mask at
a time, B = 1. One that yields its answers is given many masks at once, and each answer is kept as it comes.
"""

import contextlib
import hashlib
import inspect
import pathlib
import signal
import time

import numpy as np
import torch

from utils import jsonl
from utils.errors import UserError
from utils.files import file_of
from utils.rewards.rewards import LABEL_FREE, ask, label_free, load, numbers, weights_of

SYNC_EVERY = 1.0  # seconds: so much of the answers may a power cut take, a kill takes none
MOMENT = 2.0  # seconds that a scorer has left after SIGTERM or Ctrl-C
AGAIN = 1.0  # seconds until a scorer that has caught `NoAnswer`, by a bare `except`, gets it again


class NoAnswer(BaseException):
    """Raised in the middle of a scorer that is asked too long; its `except Exception` does not catch it."""


def judge(words, classes):
    """["my.py:score=1", "anatomy=0.1"] -> function(masks, photos), which yields for each mask the weighted
    sum of what they say, (C,) float64: C is 1, or the number of classes. Raises UserError. classes: names."""
    weights = weights_of(words)
    parts = {name: stream_of(name, classes) for name in weights}

    def answer(name, stream):
        array = numbers(name, ask(name, next, stream, None)).reshape(-1)
        if len(array) not in (1, len(classes)):
            need = f"one for a mask, or one for each of the {len(classes)} classes"
            raise UserError(f"reward {name}: got {len(array)} numbers; need {need}")
        if np.isnan(array).all():
            raise UserError(f"reward {name}: got nan")
        return array

    def function(masks, photos):
        streams = {name: part(masks, photos) for name, part in parts.items()}
        for _ in photos:
            yield sum(weights[name] * answer(name, stream) for name, stream in streams.items())

    return function


def stream_of(name, classes):
    """(masks, photos) -> an iterator over the answers of one scorer."""
    if name in LABEL_FREE:
        score = label_free(name, classes)
        return lambda masks, photos: iter(score(masks, photos))  # these cost nothing but time
    score = load(name, LABEL_FREE, ("masks", "photos"))
    if inspect.isgeneratorfunction(score):
        return score
    return lambda masks, photos: (score(masks[i : i + 1], photos[i : i + 1]) for i in range(len(photos)))


def code_of(words):
    """Digest of the files behind ["my.py:score=1", "anatomy=0.1"]; None where there are none."""
    files = [file for file in map(file_of, words) if file]
    code = b"".join(pathlib.Path(file).read_bytes() for file in files)
    return hashlib.sha256(code).hexdigest()[:16] if files else None


class Scorer:
    """scorer(masks, photos) -> (B, C) float64, C = 1 or the number of classes.

    words: of --reward; they are a part of the key, so that answers of another scorer are never taken for
    theirs. classes: names. timeout: seconds that an answer may take, None for any. stop: a `dist.Stop`, so
    that SIGTERM or Ctrl-C do not wait for a scorer that hangs.
    A mask that was asked about before is answered from memory, which `path` keeps across runs and kills: one
    line of JSON for each answer, with the code that gave it. asked: how many masks were submitted, ever.
    """

    def __init__(self, words, classes, path, budget=None, timeout=None, stop=None):
        self.function, self.name, self.code = judge(words, classes), " ".join(words), code_of(words)
        self.path, self.budget, self.timeout, self.stop = pathlib.Path(path), budget, timeout, stop
        self.known = {}
        self.before = self.code  # that gave the last answer; older files do not say
        self.width = self.until = None
        self.synced = 0.0
        for row in jsonl.read(self.path, {"key": str, "score": list}):
            self.known[row["key"]] = row["score"]
            self.before = row.get("code", self.before)

    def refuse_other_code(self):
        """UserError if the file was edited, or is another, since it gave the answers that are kept."""
        if self.before != self.code:
            raise UserError(
                f"{self.path}: its answers are of other code than {self.name} is now, and must not be mixed: "
                "restore the file, or name another --out; --same-scorer if it judges as before"
            )

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
            raise UserError(
                f"score budget {self.budget}: {len(new)} more scores would exceed it; --resume may raise it"
            )
        self.width = next((len(self.known[key]) for key in keys if key in self.known), self.width)
        rows = list(new.values())
        answers = self.function(array[rows], [photos[i] for i in rows])
        for key, i in new.items():
            answer = self.ask(answers, photos[i])
            due = time.monotonic() - self.synced > SYNC_EVERY
            jsonl.append(self.path, {"key": key, "score": answer, "code": self.code}, due)
            self.synced = time.monotonic() if due else self.synced
            self.known[key] = answer
        found = [self.known[key] for key in keys]
        return torch.tensor(found, dtype=torch.double, device=masks.device)

    def ask(self, answers, photo):
        """The answer about one more mask, [C] numbers."""
        try:
            with self.limited() as answered:
                answer = next(answers).tolist()
                answered.append(True)
            if self.width not in (None, len(answer)):
                raise UserError(f"reward {self.name}: got {len(answer)} numbers, and {self.width} before")
            self.width = len(answer)
            return answer
        except UserError as error:
            raise UserError(f"{error}, about {photo}; {self.kept()}") from None
        except NoAnswer:
            if self.stop and self.stop.signal:
                print(f"stopped by signal {self.stop.signal} while {self.name} was asked; {self.kept()}")
                raise SystemExit(128 + self.stop.signal) from None
            took = f"no answer in {self.timeout:g} s"
            raise UserError(f"reward {self.name}: {took}, about {photo}; {self.kept()}") from None

    @contextlib.contextmanager
    def limited(self):
        """Ends the block by `NoAnswer` after the timeout, and a moment after SIGTERM or Ctrl-C: wherever
        Python runs or waits, so not within code in C that does not look at signals."""

        answered = []  # no answer is given up that is there
        late = []  # and none is taken that comes when it was given up

        def give_up(number, frame):
            if not answered:
                late.append(True)
                raise NoAnswer

        def hurry(number, frame):
            if self.stop.signal:  # the second one
                give_up(number, frame)
            before[number](number, frame)  # `stop` takes note
            signal.setitimer(signal.ITIMER_REAL, MOMENT, AGAIN)
            self.until = time.monotonic() + MOMENT

        handlers = {signal.SIGALRM: give_up}
        seconds = self.timeout or 0  # 0: no limit
        if self.stop:
            handlers |= {signal.SIGTERM: hurry, signal.SIGINT: hurry}
        if self.stop and self.stop.signal:  # since an earlier mask, or outside of any
            self.until = self.until or time.monotonic() + MOMENT
            seconds = max(self.until - time.monotonic(), 0.001)
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            yield answered
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            if late:
                raise NoAnswer  # whatever the scorer made of the one that it got

    def kept(self):
        """How a run that ends here goes on, for people."""
        resumes = (self.path.parent / "last.pt").is_file()
        answers = f"{self.asked} answers are kept in {self.path}"
        return f"{answers}; {'--resume' if resumes else 'the same command'} goes on"
