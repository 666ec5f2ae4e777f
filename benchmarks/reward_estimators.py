"""How good one step's gradient is, and how dear: the estimators of train_reward.py on a trained network.

Run:    python benchmarks/reward_estimators.py --init runs/finetune/best.pt
Needs:  a checkpoint of train_finetune.py; --data if not the checkpoint's own
Writes: the JSON file, if one is named
Expect: benchmarks/reward_estimators.md

One batch of 16 training faces, not augmented. The true gradient of an expected reward is the average of
many draws of `local`, which is unbiased. Single draws are held against it, in logits and in parameters:

cosine    to it, averaged over draws; its length is from the dot product of its two half averages,
          which noise does not lengthen, so that this is the cosine to the truth
variance  E|g - mean|^2 / |mean|^2, the noise of the average likewise taken out
step      forward, loss (an estimator's with its random numbers, masks and rewards), backward and
          AdamW, in steps of cross-entropy timed right before: median of the ratios

Dice and Jaccard are losses of train_finetune.py, held against the true gradient of f1.
"""

import functools
import json
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


from datasets import batches, splits  # noqa: E402
from datasets.images import to_float  # noqa: E402
from datasets.synthetic import scheme_of  # noqa: E402
from models import restore  # noqa: E402
from train_reward import block, local, reinforce, rloo  # noqa: E402
from utils import checkpoint, cli, dist, rng  # noqa: E402
from utils.losses import dice, jaccard  # noqa: E402
from utils.metrics import IGNORE_INDEX  # noqa: E402
from utils.rewards.policy_gradient import policy_loss  # noqa: E402
from utils.rewards.rewards import build  # noqa: E402

BATCH = 16
SINGLE = 8  # draws that are held against the true gradient, one by one
SECONDS = 10  # what takes longer, for one estimator at one size, stops early, after two draws at least
# name: (estimator, reward, masks' worth of uniform numbers)
ESTIMATORS = {
    "reinforce": (reinforce, "f1", 2),
    **{f"rloo {k}": (rloo, "f1", k) for k in (2, 4, 8, 16)},
    **{f"block {side}": (functools.partial(block, side=side), "f1", 2) for side in (32, 16)},
    "local": (local, "f1", 2),
    "local boundary": (local, "boundary_f1", 2),
}
CONTROLS = {"soft dice": dice, "soft jaccard": jaccard}


def get_parser():
    p = cli.parser(__doc__)
    p.add_argument("--init", metavar="FILE", required=True, help="checkpoint to measure on")
    p.add_argument("--data", help="folder of faces or synthetic (default: what --init trained on)")
    p.add_argument(
        "--sizes", nargs="+", type=cli.positive, default=[64, 128, 256], help="sides of the images, pixels"
    )
    p.add_argument("--draws", type=cli.positive, default=128, help="at most, averaged to the true gradient")
    p.add_argument("--repeats", type=cli.positive, default=5, help="steps timed, at most")
    p.add_argument("--amp", choices=["off", "bf16"], help="of the forward pass; bf16 on a GPU, else off")
    p.add_argument("--device", help="cpu or cuda; a GPU where there is one")
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    return p


def loss_of(name, logits, labels, rewards, step, stream):
    """The loss whose gradient one step of an estimator, a control or `ce` takes."""
    if name == "ce":
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
    if name in CONTROLS:
        total, count = CONTROLS[name](logits, labels)
        return total / count
    estimator, reward, masks = ESTIMATORS[name]
    with torch.no_grad():
        positions = batches.positions(step, len(labels)).to(labels.device)
        u = rng.uniform(0, positions, masks * labels[0].numel(), stream)
        u = u.view(len(labels), masks, *labels.shape[1:])
        weights, _ = estimator(logits, labels, rewards[reward], u)
    return policy_loss(logits, weights, labels).mean()


def average(draw, count):
    """The averages of the even and of the odd draws, and how many there were."""
    began, halves, done = time.time(), [0.0, 0.0], 0
    while done < max(2, count) and (done < 2 or done % 2 or time.time() - began < SECONDS):
        halves[done % 2] = halves[done % 2] + draw(done)
        done += 1
    return halves[0] / ((done + 1) // 2), halves[1] / (done // 2), done


def against(grads, one, two, n):
    """(cosine, variance) of single draws; one, two: averages of the halves of n others."""
    mean, squared = (one + two) / 2, torch.dot(one, two)
    cosine = sum(torch.dot(g, mean) / g.norm() for g in grads) / len(grads) / squared.sqrt()
    spread = sum((g - mean).square().sum() for g in grads) / len(grads) / (1 + 1 / n)
    return cosine.item(), (spread / squared).item()


def cosine_of(one, two):
    return F.cosine_similarity(one, two, dim=0).item()


def gradients(forward, params, labels, rewards, draws):
    """Rows (dicts) of single draws, and rows (lists) of averages, at one size."""
    logits, size, truth, averages, rows = forward(), len(labels[0]), {}, [], []
    leaf = logits.detach().requires_grad_()

    def draw(step, name, stream):  # the gradient of the logits, flat
        loss = loss_of(name, leaf, labels, rewards, step, stream)
        return torch.autograd.grad(loss, leaf)[0].double().flatten()

    def of_params(grad):
        grads = torch.autograd.grad(logits, params, grad.view_as(logits).float(), retain_graph=True)
        return torch.cat([g.double().flatten() for g in grads])

    for name in ("local", "local boundary"):
        *halves, n = average(functools.partial(draw, name=name, stream=1), draws)
        pairs = halves, [of_params(g) for g in halves]
        truth[ESTIMATORS[name][1]] = pairs, n
        averages.append([size, f"{name}, two halves", n, *(cosine_of(*pair) for pair in pairs)])
    *halves, n = average(functools.partial(draw, name="rloo 16", stream=3), draws)
    pairs = zip((sum(halves), of_params(sum(halves))), map(sum, truth["f1"][0]), strict=True)
    averages.append([size, "rloo 16 and local", n, *(cosine_of(*pair) for pair in pairs)])
    for name in [*ESTIMATORS, *CONTROLS]:
        began, grads = time.time(), []
        while len(grads) < SINGLE and (len(grads) < 2 or time.time() - began < SECONDS):
            grad = draw(len(grads), name, stream=2)
            grads.append((grad, of_params(grad)))
        pairs, n = truth["f1" if name in CONTROLS else ESTIMATORS[name][1]]
        both = [against(g, *pair, n) for g, pair in zip(zip(*grads, strict=True), pairs, strict=True)]
        cosine, variance = zip(*both, strict=True)
        variance = (0.0, 0.0) if name in CONTROLS else variance  # always the same, of another length
        rows.append(
            {"size": size, "estimator": name, "draws": len(grads), "cosine": cosine, "variance": variance}
        )
    return rows, averages


def times(forward, params, labels, rewards, repeats):
    """{name: steps of cross-entropy that one step takes, the median of the ratios}."""
    optimizer = torch.optim.AdamW(params, lr=0.0, weight_decay=0.0)  # the same work, and nothing moves

    def now():
        if labels.is_cuda:
            torch.cuda.synchronize(labels.device)
        return time.perf_counter()

    def seconds(name, step):
        began = now()
        loss = loss_of(name, forward(), labels, rewards, step, stream=9)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return now() - began

    seconds("ce", 0)
    pairs = {name: [] for name in [*ESTIMATORS, *CONTROLS]}
    for step in range(repeats):
        for name in [n for n in pairs if sum(took for _, took in pairs[n]) < SECONDS]:
            pairs[name].append((seconds("ce", step), seconds(name, step)))
    return {name: statistics.median(took / plain for plain, took in pairs[name]) for name in pairs}


def main(args):
    # ---- setup ----
    _, _, device = dist.init(args.device)
    state = checkpoint.load(args.init)
    trained, classes = state["args"], state["data"]["classes"]
    amp = args.amp or dist.default_amp(device)
    path = args.data or trained["data"]
    faces = splits.open_data(
        path, path == "synthetic" and scheme_of(classes), trained["part_order"], trained["val_fraction"]
    )
    model = restore(state, device)
    params, rows, averages = list(model.parameters()), [], []
    rewards = {name: build([name], classes)[0] for name in ("f1", "boundary_f1")}
    print(
        f"{faces.name} train: {BATCH} faces, {len(classes)} classes; {trained['model']} on {device.type}, "
        f"{amp} precision, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print(
        "                             cosine            variance            step\n"
        "size  estimator    draws   logits   params   logits   params   / CE"
    )

    # ---- measure ----
    for size in args.sizes:
        train = batches.load(faces, "train", size, device=device)
        photos = train[rng.order(0, 0, len(train)).tolist()[:BATCH]]
        images = to_float(photos["image"].to(device)).to(memory_format=torch.channels_last)
        labels = photos["semantic"].to(device).long()

        def forward(images=images):
            with torch.autocast(device.type, torch.bfloat16, enabled=amp != "off"):
                return model(images)["semantic"].float()

        found = gradients(forward, params, labels, rewards, args.draws)
        step = times(forward, params, labels, rewards, args.repeats)
        for row in found[0]:
            row["step"] = step[row["estimator"]]
            print(
                "{:4}  {:<14}{:4}{:9.4f}{:9.4f}{:9.3g}{:9.3g}{:7.2f}".format(
                    size, row["estimator"], row["draws"], *row["cosine"], *row["variance"], row["step"]
                ),
                flush=True,
            )
        rows, averages = rows + found[0], averages + found[1]

    # ---- finish ----
    print("\nsize  cosine of averages              draws   logits   params")
    for row in averages:
        print("{:4}  {:<26}{:11}{:9.4f}{:9.4f}".format(*row))
    if args.json:
        pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(args.json).write_text(json.dumps({"rows": rows, "averages": averages}, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main, get_parser().parse_args())
