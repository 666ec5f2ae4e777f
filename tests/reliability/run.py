"""Runs the experiments of docs/reliability.md as often as its table says, and writes rows and table.

Run:    python tests/reliability/run.py                                   (all: about 20 minutes of two cores)
        python tests/reliability/run.py --experiments R1 R6 --n 20        (some, another number of times)
Needs:  what the tests need; R6 needs a user who may mount a disk, R5 a GPU
Writes: results.json beside this file (rows of experiments that did not run now are kept), docs/reliability.md
"""

import argparse
import json
import math
import os
import pathlib
import platform
import signal
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "tests/reliability/results.json"
PAGE = ROOT / "docs/reliability.md"
BEGIN, END = "<!-- the table: tests/reliability/run.py writes it -->\n", "<!-- the end of the table -->\n"

# id: (what is done, pass mark, [tests]); without a test: why there is none
HERE = "tests/reliability/"
DATASETS, SCRIPTS, UTILS, MODELS = "tests/datasets/", "tests/scripts/", "tests/utils/", "tests/models/"
EXPERIMENTS = {
    "R1": (
        "SIGKILL at a random moment of a loop of saves without a pause, 32 MB of state",
        "unreadable, missing, lost, strays after the next start: 0",
        [HERE + "test_saving.py::test_a_kill_while_saving_loses_nothing"],
    ),
    "R2": (
        "SIGKILL at random moments of one run, each time `--resume`, then to its end: three training scripts",
        "SHA-256 of the weights is that of the run never killed",
        [HERE + "test_resuming.py::test_killed_many_times"],
    ),
    "R3": (
        "resumed at every step of two epochs: `train_finetune.py`, `train_reward.py`",
        "weights, optimizer, best, rows: equal",
        [HERE + "test_resuming.py::test_resumed_at_every_step"],
    ),
    "R4": (
        "the first 500 samples with 1, 2, 4 workers, by fork, spawn, forkserver",
        "SHA-256 is that without workers",
        [HERE + "test_resuming.py::test_workers_do_not_matter"],
    ),
    "R5": (
        "resumed on a GPU after 10 of 100 steps",
        "largest difference is told",
        [HERE + "test_resuming.py::test_resumed_on_a_gpu"],
    ),
    "R6": (
        "disks of 20 kB to 40 MB that are full in the logs, the first save or a later one",
        "one line, status 2, earlier checkpoints whole, no strays",
        [
            HERE + "test_saving.py::test_a_full_disk_is_one_line_and_keeps_what_there_is",
            UTILS + "test_checkpoint.py::test_a_full_disk_keeps_the_earlier_file",
        ],
    ),
    "R7": (
        "checkpoints: empty, cut, a byte flipped anywhere, foreign, of other classes, with NaN",
        "refused with path and cause, or without effect",
        [UTILS + "test_checkpoint.py"],
    ),
    "R8": (
        "a pickle that would create a file, in three wrappings, for every flag that takes a checkpoint",
        "refused in one line, no file created",
        [HERE + "test_inputs.py::test_no_script_runs_what_a_file_holds"],
    ),
    "R9": (
        "photos and masks of every kind: cut, damaged, foreign, pipes, links, 16 bits, float, turned",
        "each read with the right values or refused by name",
        [DATASETS + "test_images.py"],
    ),
    "R10": (
        "one bit of a PNG mask flipped",
        "refused, or without effect",
        [HERE + "test_inputs.py::test_a_flipped_bit_of_a_png_is_no_other_picture"],
    ),
    "R11": (
        "PNGs of 100 and 400 megapixels",
        "refused before they are decoded: less than 20 MB more",
        [HERE + "test_inputs.py::test_a_bomb_is_refused_before_it_is_decoded"],
    ),
    "R12": (
        "weights that are no longer finite",
        "one line, status 2, no checkpoint with them",
        [HERE + "test_saving.py::test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved"],
    ),
    "R13": (
        "SIGTERM, SIGINT, SIGUSR1 at random moments, to the process or its group; a second Ctrl-C",
        "143, 130 or the signal's own end; then as R2",
        [
            HERE + "test_resuming.py::test_signalled_many_times",
            HERE + "test_resuming.py::test_a_second_signal_ends_it_at_once",
        ],
    ),
    "R14": (
        "two processes train, and three evaluate, as one does",
        "weights within 1e-6, counts equal",
        [
            SCRIPTS + "test_resume.py::test_two_processes_are_one",
            SCRIPTS + "test_resume.py::test_three_processes_count_as_one",
        ],
    ),
    "R15": (
        "one of two processes is killed, or refuses its data",
        "the other ends, too, and says why",
        [
            HERE + "test_processes.py::"
            "test_a_killed_process_ends_the_other_and_a_restart_is_the_run_never_killed",
            HERE + "test_processes.py::test_a_process_that_raises_ends_the_other",
        ],
    ),
    "R16": (
        "`torchrun --max-restarts=2`: a worker killed at a random moment, or torchrun sent SIGTERM",
        "goes on by itself, or with the same command; weights and optimizer equal",
        [HERE + "test_processes.py::test_under_torchrun"],
    ),
    "R17": ("gradient accumulation", "", "not offered: `--batch-size` is what one step sees"),
    "R18": (
        "flips: left and right swapped in mask and photo alike",
        "every pair of every class list",
        [
            DATASETS + "test_augmentation.py::test_flip_swaps_left_and_right",
            DATASETS + "test_augmentation.py::test_augment_flips_image_and_mask",
            DATASETS + "test_synthetic.py::test_flip_pairs_are_all_the_names_of_two_sides",
        ],
    ),
    "R19": (
        "the class list in another order: evaluated, carried over by `--init`",
        "refused with both lists; carried over by name",
        [
            HERE + "test_inputs.py::test_a_class_list_in_another_order_is_refused",
            SCRIPTS + "test_chain.py::test_classes_are_matched_by_name",
        ],
    ),
    "R20": (
        "a photo without its mask, a mask without its photo",
        "refused by name",
        [DATASETS + "test_datasets.py::test_folder_orphans"],
    ),
    "R21": (
        "one photo, fewer than a batch, nobody held out",
        "a run without NaN",
        [HERE + "test_limits.py::test_very_few_photos"],
    ),
    "R22": (
        "a second run in the same folder; run folders that cannot be",
        "refused in one line before data is read",
        [
            HERE + "test_processes.py::test_a_second_run_in_the_same_folder_is_refused",
            HERE + "test_processes.py::test_where_nothing_can_be_written",
        ],
    ),
    "R23": (
        "names with spaces, line breaks, brackets, emoji, 240 bytes; a relative path; the locale C",
        "weights equal to those of plain names",
        [HERE + "test_inputs.py::test_strange_names_change_nothing"],
    ),
    "R24": (
        "10,000 photos of 256 x 256: two starts, 20 epochs with 0, 4 and 8 workers",
        "the second start reads none again; memory grows by less than 5 %",
        [HERE + "test_limits.py::test_ten_thousand_photos"],
    ),
    "R25": (
        "out of memory (RLIMIT_AS on a CPU)",
        "one line, status 2; no second try with a smaller batch is offered",
        [HERE + "test_saving.py::test_out_of_memory_is_one_line"],
    ),
    "R26": (
        "from photos to overlays, script by script, without a network",
        "status 0, every promised file",
        [SCRIPTS + "test_chain.py::test_the_chain_from_photos_to_overlays"],
    ),
    "R27": (
        "`--compile` and not: saved, restored, taken by `--init`",
        "the same keys; logits within 1e-4 after three steps",
        [HERE + "test_limits.py::test_compiled_or_not_a_checkpoint_is_the_same"],
    ),
    "R28": (
        "a checkpoint of format 1, as released",
        "gives the logits that it gave",
        [MODELS + "test_models.py::test_a_checkpoint_of_format_1_gives_what_it_gave"],
    ),
    "R29": (
        "metrics.jsonl and TensorBoard after all kills of R2",
        "rows of the run never killed; both alike",
        [HERE + "test_resuming.py::test_killed_many_times"],
    ),
    "R30": (
        "wrong commands",
        "one line that names what to do, no traceback",
        [SCRIPTS + "test_mistakes.py"],
    ),
    "R31": (
        "SIGKILL at moments all over a promotion and a rollback of `operate.py`",
        "the champion is the old or the new one, whole, and its history says which",
        [UTILS + "operate/test_store.py::test_killed_at_any_moment_the_champion_is_the_old_or_the_new_one"],
    ),
    "torchvision": (
        "R1 with the save of torchvision's reference scripts: in place",
        "",
        [HERE + "test_saving.py::test_how_others_save[torchvision]"],
    ),
    "ultralytics": (
        "R1 with the save of Ultralytics: from memory in one go",
        "",
        [HERE + "test_saving.py::test_how_others_save[ultralytics]"],
    ),
    "timm": (
        "R1 with the save of timm: the earlier file is deleted, then the new one renamed",
        "",
        [HERE + "test_saving.py::test_how_others_save[timm]"],
    ),
}


class Recorder:
    """What pytest found of each test."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            told = dict(report.user_properties)
            told["n"] = told.get("n", 1)
            whole = told["n"] if report.outcome == "passed" else 0
            why = report.longrepr[2] if report.skipped else ""
            told |= {"passed": told.get("passed", whole), "outcome": report.outcome, "why": why}
            self.found[report.nodeid] = told | {"seconds": report.duration}


def machine():
    """Words and versions, without names."""
    import numpy
    import PIL
    import torch
    import torchvision

    cpus = pathlib.Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": PIL.__version__,
        "numpy": numpy.__version__,
        "machine": f"{platform.system()}, {os.cpu_count()} cores of {(models or ['unknown'])[0]}{gpu}",
        "date": time.strftime("%Y-%m-%d"),
    }


def row_of(name, found, versions):
    what, mark, tests = EXPERIMENTS[name]
    mine = [told for node, told in found.items() if any(_is(node, test) for test in tests)]
    ran = [told for told in mine if told["outcome"] != "skipped"]
    if not ran:
        return {
            "id": name,
            "what": what,
            "n": 0,
            "figure": "; ".join({told["why"].removeprefix("Skipped: ") for told in mine}),
            **versions,
        }
    return {
        "id": name,
        "what": what,
        "n": sum(told["n"] for told in ran),
        "passed": sum(told["passed"] for told in ran),
        "figure": "; ".join(dict.fromkeys(told["figure"] for told in ran if "figure" in told)),
        "mark": mark,
        "tests": tests,
        "seconds": round(sum(told["seconds"] for told in ran)),
        **versions,
    }


def _is(node, test):
    return node == test or node.startswith((test + "[", test + "::"))


def table(rows):
    """The rows as Markdown."""
    lines = ["| | what is done | n | as it should be | figure | pass mark | where |", "|" + "---|" * 7]
    for name, (what, mark, tests) in EXPERIMENTS.items():
        row = rows.get(name, {"n": 0, "figure": ""})
        n, passed, figure, where = row["n"] or "", "not run", row["figure"], ""
        if isinstance(tests, str):
            n, passed, figure = "", "", tests
        else:
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            where = ", ".join(f"[{file.rpartition('/')[2]}](../{file})" for file in files)
        if row["n"]:
            passed = f"{row['passed']} ({math.floor(100 * row['passed'] / row['n'])} %)"
        lines.append(f"| {name} | {what} | {n} | {passed} | {figure} | {mark} | {where} |")
    return "\n".join(lines) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--experiments", nargs="+", metavar="ID", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    p.add_argument("--n", type=int, help="how often, in place of what each experiment has")
    p.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="FILE", help="rows, as JSON")
    args = p.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from what they start with &
    os.environ |= {"RELIABILITY": "1", "OMP_NUM_THREADS": "1"}
    if args.n:
        os.environ["RELIABILITY_N"] = str(args.n)
    import pytest

    chosen = [name for name in args.experiments if isinstance(EXPERIMENTS[name][2], list)]
    recorder, tests = Recorder(), dict.fromkeys(test for name in chosen for test in EXPERIMENTS[name][2])
    status = pytest.main([*tests, "-p", "no:cacheprovider"], plugins=[recorder])
    rows = {row["id"]: row for row in json.loads(args.out.read_text())} if args.out.exists() else {}
    versions = machine()
    rows |= {name: row_of(name, recorder.found, versions) for name in chosen}
    ordered = [rows[name] for name in EXPERIMENTS if name in rows]
    args.out.write_text(json.dumps(ordered, indent=1) + "\n")
    if args.out == RESULTS:
        page = PAGE.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(before + BEGIN + "\n" + table(rows) + "\n" + END + after)
    return status


if __name__ == "__main__":
    sys.exit(main())
