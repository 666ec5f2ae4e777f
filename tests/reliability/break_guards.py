"""Takes one guard at a time out of a copy of the repository, and expects an experiment to fail.

python tests/reliability/break_guards.py [WORDS]    all, or those with WORDS in a name; about 10 minutes
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
PAGE = "docs/reliability.md"
BEGIN, END = "<!-- guards -->\n", "<!-- the end of guards -->\n"
SAVING, RESUMING, PROCESSES, INPUTS = (
    f"tests/reliability/test_{name}.py::" for name in ("saving", "resuming", "processes", "inputs")
)
RESUME = "tests/scripts/test_resume.py::"
CHECKPOINT = "tests/utils/test_checkpoint.py::"
GUARDS = [  # (experiment, guard, file, text, what takes its place, test)
    (
        "R1",
        "a save replaces the file in one go",
        "utils/files.py",
        "os.replace(temporary, path)",
        "shutil.copyfile(temporary, path)",
        SAVING + "test_a_kill_while_saving_loses_nothing",
    ),
    (
        "R2",
        "the optimizer's state comes back",
        "train_finetune.py",
        'optimizer.load_state_dict(last["optimizer"])',
        "pass",
        RESUMING + "test_killed_many_times",
    ),
    (
        "R3",
        "the order of photos goes on where it was",
        "train_finetune.py",
        "args.seed, first, args.steps, rank",
        "args.seed, 0, args.steps, rank",
        RESUMING + "test_resumed_at_every_step",
    ),
    (
        "R4",
        "the order is a function of the seed",
        "datasets/batches.py",
        "rng.order(self.seed, epoch, self.n)",
        "torch.randperm(self.n)",
        RESUMING + "test_workers_do_not_matter",
    ),
    (
        "R6",
        "what was half-written is deleted",
        "utils/files.py",
        "temporary.unlink(missing_ok=True)",
        "pass",
        SAVING + "test_a_full_disk_is_one_line_and_keeps_what_there_is",
    ),
    (
        "R7",
        "every byte of a checkpoint is checked",
        "utils/checkpoint.py",
        "archive.testzip()",
        "None",
        CHECKPOINT + "test_one_flipped_byte_of_a_tensor",
    ),
    (
        "R8",
        "a checkpoint is plain data",
        "utils/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        INPUTS + "test_no_script_runs_what_a_file_holds",
    ),
    (
        "R10",
        "the checksums of a PNG are compared",
        "datasets/images.py",
        'if image.format == "PNG":',
        "if False:",
        INPUTS + "test_a_flipped_bit_of_a_png_is_no_other_picture",
    ),
    (
        "R12",
        "weights that are not finite end a run",
        "utils/metrics.py",
        "if not extremes.isfinite().all():",
        "if False:",
        SAVING + "test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved",
    ),
    (
        "R13",
        "a signal is noted",
        "utils/dist.py",
        "self.signal = number",
        "self.signal = 0",
        RESUME + "test_sigterm_saves_and_resumes",
    ),
    (
        "R13",
        "a second signal ends the process",
        "utils/dist.py",
        "if self.signal:",
        "if False:",
        RESUMING + "test_a_second_signal_ends_it_at_once",
    ),
    (
        "R14",
        "the loss is divided by the count of all processes",
        "train_finetune.py",
        "dist.total(count)",
        "(world * count)",
        RESUME + "test_two_processes_are_one",
    ),
    (
        "R15",
        "the loss of a process is one line",
        "utils/dist.py",
        'or "/gloo/" in str(error)',
        "",
        PROCESSES + "test_a_process_that_raises_ends_the_other",
    ),
    (
        "R16",
        "each start has keys of its own",
        "utils/dist.py",
        "store = torch_dist.PrefixStore(",
        "torch_dist.PrefixStore(",
        PROCESSES + "test_a_killed_process_ends_the_other_and_a_restart_is_the_run_never_killed",
    ),
    (
        "R19",
        "class lists are compared",
        "evaluate.py",
        "if found.classes != classes:",
        "if False:",
        INPUTS + "test_a_class_list_in_another_order_is_refused",
    ),
    (
        "R20",
        "photos and masks are paired",
        "datasets/faces.py",
        "if any(lone.values()):",
        "if False:",
        "tests/datasets/test_datasets.py::test_folder_orphans",
    ),
    (
        "R22",
        "a run folder is held",
        "utils/files.py",
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        PROCESSES + "test_a_second_run_in_the_same_folder_is_refused",
    ),
    (
        "R25",
        "out of memory is one line",
        "utils/cli.py",
        'if full or "can\'t allocate memory" in text:',
        "if False:",
        SAVING + "test_out_of_memory_is_one_line",
    ),
    (
        "R28",
        "format 1 is read",
        "utils/checkpoint.py",
        "OLD = 1",
        "OLD = 0",
        "tests/models/test_models.py::test_a_checkpoint_of_format_1_gives_what_it_gave",
    ),
    (
        "R29",
        "rows of steps that are done again are dropped",
        "utils/log.py",
        'if row["step"] <= resumed]',
        "]",
        RESUMING + "test_killed_many_times[train_finetune.py]",
    ),
]


def fails_without(file, text, instead, test):
    """Whether a test fails in a copy of the repository in which one text is replaced."""
    with tempfile.TemporaryDirectory() as copy:
        copy = pathlib.Path(copy)
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        source = (copy / file).read_text()
        assert source.count(text) == 1, f"{file}: {text!r} is there {source.count(text)} times"
        (copy / file).write_text(source.replace(text, instead))
        often = {"RELIABILITY": "1", "RELIABILITY_N": "10"} if "kill" in test else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **often}
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", test]
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode == 1


def main():
    words = " ".join(sys.argv[1:])
    rows = ["| | guard | file | seen to fail |", "|---|---|---|---|"]
    for name, guard, file, text, instead, test in GUARDS:
        if words in f"{name} {guard}":
            seen = "yes" if fails_without(file, text, instead, test) else "NO"
            rows.append(f"| {name} | {guard} | [{file}](../{file}) | {seen} |")
            print(rows[-1], flush=True)
    if not words:
        page = (ROOT / PAGE).read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        (ROOT / PAGE).write_text(before + BEGIN + "\n" + "\n".join(rows) + "\n\n" + END + after)


if __name__ == "__main__":
    main()
