"""evaluate.py: which split is scored, and where the figures go, known before the work."""

import json

import evaluate


def run(*flags):
    evaluate.main(evaluate.get_parser().parse_args([str(flag) for flag in flags]))


def test_without_a_test_split_val_is_scored(finetuned, tmp_path, capsys):
    """As README has it for photos of one's own; the figures are those of --split val, and say so."""
    figures = {}
    for split in ("test", "val"):
        flags = ["--init", finetuned / "best.pt", "--device", "cpu", "--json", tmp_path / "a/b.json"]
        run(*flags, *(["--split", "val"] if split == "val" else []))
        figures[split] = json.loads((tmp_path / "a/b.json").read_text())
        assert ("no split test: these are figures of val" in capsys.readouterr().out) == (split == "test")
    assert figures["test"] == figures["val"] and figures["val"]["split"] == "val"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


def test_where_figures_cannot_be_written_nothing_is_scored(complaint, finetuned, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(evaluate.metrics, "measure", None)  # the work, which none gets to
    (tmp_path / "folder.json").mkdir()
    for path, why in (
        ("file/x.json", "is a file"),
        ("folder.json", "is a folder"),
        ("file/a/x.json", "written into"),
        ("file", "ends in .json"),
    ):
        said = complaint(evaluate, "--init", finetuned / "best.pt", "--json", tmp_path / path)
        assert why in said and said.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
