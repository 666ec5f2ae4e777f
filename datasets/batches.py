"""A split as batches, and who is next: an order is a function of (seed, step), so nothing has to be saved."""

import torch
from torch.utils.data import DataLoader

from datasets import synthetic
from datasets.cache import CachedFaces
from datasets.faces import limit
from datasets.scenes import FixedScenes, Scenes
from utils import dist, rng
from utils.errors import UserError

SYNTHETIC = {"train": 100_000, "unlabelled": 1000, "val": 128, "test": 256}  # faces in each split
SCENES = {"train": 100_000, "val": 128, "test": 256}  # scenes in each split
PARTS = 6  # of `Gradual`
APART = {"train": 0, "unlabelled": 7_000_005, "val": 7_000_001, "test": 7_000_003}  # added to the seed


def load(faces, split, size, seed=0, count=None, device="cpu", instances=False):
    """One split as data: `len(data)`, `data[[3, 1]]` -> batch dict, `data.groups`, `data.yaws`; where
    `faces.scenes` says so, `Scenes` of it, and but those to train on these are the same for every seed.

    count: so many labelled images, spread over people and yaw. device: where synthetic faces are rendered
    and scenes put together. instances: batches have "instance", too; those of scenes always have. Raises
    UserError if there is no such split, or nobody knows instances.
    """
    if instances and not faces.things:
        raise UserError(
            f"{faces.name}: nothing says where one thing ends and another begins; --scenes N makes scenes of "
            "single faces, and a model that is not panoptic_ trains the classes alone"
        )
    if not faces.scenes:
        return _load(faces, split, size, seed, count, device, instances)
    if split not in SCENES:
        raise UserError(f"scenes have the splits {', '.join(SCENES)}; not {split}")
    source = _load(faces, split, size, seed, count, device)
    fixed = split != "train"
    seed = (0 if fixed else seed) + APART[split]
    made = FixedScenes if fixed else Scenes
    return made(source, faces.scenes, size, seed, faces.flip_pairs, SCENES[split], device)


def _load(faces, split, size, seed, count, device, instances=False):
    """As `load`, photos and synthetic faces as they are."""
    if faces.name == "synthetic":
        scheme = synthetic.scheme_of(faces.classes)
        if split not in SYNTHETIC:
            raise UserError(f"synthetic faces have the splits {', '.join(SYNTHETIC)}; not {split}")
        # but those to train on, faces are the same for every seed, and are rendered once
        seed = (seed if split == "train" else 0) + APART[split]
        data = synthetic.SyntheticFaces(count or SYNTHETIC[split], seed, size, scheme, device)
        return data if split == "train" else InMemory(data)
    samples = faces.splits.get(split, [])
    if not samples:
        have = ", ".join(f"{k} ({len(v)})" for k, v in faces.splits.items())
        train = faces.splits.get("train", [])
        if split == "val" and len({s.group for s in train}) == 1:
            raise UserError(
                f"{faces.name}: all photos of train ({len(train)}) are of one person, so nobody can be held "
                "out to validate; --val-fraction 0 trains without"
            )
        hint = "; nobody is held out" if split == "val" else ""
        raise UserError(f"{faces.name} has no split {split}; it has {have}{hint}")
    return CachedFaces(faces, limit(samples, count, seed) if count else samples, size, instances)


def loader(data, order, workers, device):
    """Batches of `data` in an `Order`. workers: processes that read, which ignore SIGTERM and Ctrl-C."""
    pinned = workers > 0 and device.type == "cuda"
    ignore = dist.ignore_signals
    return DataLoader(
        data, sampler=order, batch_size=None, num_workers=workers, pin_memory=pinned, worker_init_fn=ignore
    )


class InMemory:
    """A small data set read once, in pieces of 32."""

    def __init__(self, data):
        rows = list(range(len(data)))
        pieces = [data[rows[i : i + 32]] for i in range(0, len(rows), 32)]
        self.batch = {k: torch.cat([p[k] for p in pieces]) for k in pieces[0]}
        self.groups, self.yaws = [str(i) for i in rows], self.batch["yaw"].tolist()

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return {k: v[index] for k, v in self.batch.items()}


def mix(real, share, classes, size, seed, device):
    """What a loader reads: `real`, or with share > 0 `Mixed` with synthetic faces, in scenes where `real` are
    scenes."""
    if not share:
        return real
    scenes = isinstance(real, Scenes)
    if isinstance(real.source if scenes else real, synthetic.SyntheticFaces):
        raise UserError(f"synthetic share {share}: these faces are all synthetic already")
    if not 0 < share <= 1:
        raise UserError(f"synthetic share {share}: need a share from 0 to 1")
    scheme = synthetic.scheme_of(classes)
    made = synthetic.SyntheticFaces(10**9, seed, size, scheme, device)
    if scenes:
        made = Scenes(made, real.most, size, seed, real.flip_pairs, 10**9, device)
    return Mixed(real, made)


class Mixed:
    """Real faces at 0..len(real)-1 and synthetic ones beyond, in one batch."""

    def __init__(self, real, faces):
        self.real, self.synthetic = real, faces

    def __getitem__(self, index):
        n = len(self.real)
        batches = []
        rows = []
        for data, first in ((self.real, 0), (self.synthetic, n)):
            places = [row for row, i in enumerate(index) if (i >= n) == (first == n)]
            if places:
                batches.append(data[[index[row] - first for row in places]])
                rows += places
        back = torch.tensor(rows).argsort()
        keys = [key for key in batches[0] if all(key in batch for batch in batches)]
        return {k: torch.cat([batch[k].cpu() for batch in batches])[back] for k in keys}


class Order(torch.utils.data.Sampler):
    """The indices of each step from `first` up to but not including `last`, a function of (seed, step).

    The whole batch of one step is `world` times `batch_size` images; every epoch goes through all n
    images in a new order, and a batch may span two epochs, so that n may be smaller than a batch.
    share: that part of the images, evenly spread, is n, n + 1, ..., each once (synthetic faces).
    """

    def __init__(self, n, batch_size, seed, first, last, rank=0, world=1, share=0.0):
        self.n, self.batch_size, self.seed, self.share = n, batch_size, seed, share
        self.steps, self.rank, self.world = range(first, last), rank, world

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        whole = self.world * self.batch_size
        orders = {}
        for step in self.steps:
            first = step * whole + self.rank * self.batch_size
            indices = []
            for position in range(first, first + self.batch_size):
                made = int(position * self.share + 1e-9)  # synthetic faces before this position
                if int((position + 1) * self.share + 1e-9) > made:
                    indices.append(self.n + made)
                    continue
                epoch, row = divmod(position - made, self.n)
                if epoch not in orders:
                    orders = {k: v for k, v in orders.items() if k == epoch - 1}
                    orders[epoch] = rng.order(self.seed, epoch, self.n).tolist()
                indices.append(orders[epoch][row])
            yield indices


class Gradual(torch.utils.data.Sampler):
    """As `Order`, of rows that are opened in `PARTS` parts of a round, from first to last; half of the draws
    are of the newest two parts.

    ranked: all rows, in the order in which they are opened. steps: of the run from here on, a range.
    per_round: how many a round has.
    """

    def __init__(self, ranked, batch_size, seed, steps, per_round, rank=0, world=1):
        self.ranked, self.batch_size, self.seed = ranked, batch_size, seed
        self.steps, self.per_round, self.rank, self.world = steps, per_round, rank, world

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        n = len(self.ranked)
        for step in self.steps:
            part = step % self.per_round * PARTS // self.per_round
            end = max(1, n * (part + 1) // PARTS)
            places = positions(step, self.batch_size, self.rank, self.world)
            newest, place = rng.uniform(self.seed, places, 2, stream=1000).T  # which no augmentation uses
            begin = torch.where(newest < 0.5, n * max(0, part - 1) // PARTS, 0)
            rows = (begin + place * (end - begin)).long().clamp_max(end - 1)
            yield [self.ranked[row] for row in rows.tolist()]


def positions(step, batch_size, rank=0, world=1):
    """(batch_size,) int64: the numbers of this process's images among all that a run ever sees,
    from which their augmentation is drawn."""
    return torch.arange(batch_size) + (step * world + rank) * batch_size
