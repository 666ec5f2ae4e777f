"""recipes/style_table.py: means, gains over a row, and what a phrase of another domain gives."""

import json

import pytest

from recipes import style_table

# {row: {domain: figures of the seeds 0, 1, ...}}
FIGURES = {
    "more": {"night": [0.5, 0.6, 0.7], "fog": [0.2, 0.3, 0.4]},
    "night": {"night": [0.6, 0.8, 0.75], "fog": [0.3, 0.4]},
    "fog": {"night": [0.5, 0.7, 0.8], "fog": [0.5, 0.5, 0.45]},
}


@pytest.fixture
def measured(tmp_path):
    for row, domains in FIGURES.items():
        for domain, values in domains.items():
            for seed, value in enumerate(values):
                path = tmp_path / f"{seed}/{row}/{domain}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"images": 4, "mean_f1": value, "miou": value / 2}))
    return tmp_path


def tables(text):
    """[{row: [cells]}] of the tables in a text."""
    found = []
    for line in text.splitlines():
        if line.startswith("| row"):
            found.append({})
        elif line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found[-1][name] = cells
    return found


def test_tables(measured, capsys):
    style_table.main(style_table.get_parser().parse_args([str(measured)]))
    levels, gains = tables(capsys.readouterr().out)
    assert list(levels) == ["more", "night", "fog", "its own phrase", "another's"]
    assert levels["more"] == [".600 ± .100", ".300 ± .100", ".450 ± .100"]
    assert levels["night"] == [".717 ± .104", ".350 ± .071", ".525 ± .106"], "the mean of the seeds there are"
    assert levels["its own phrase"][:2] == [levels["night"][0], levels["fog"][1]]
    assert levels["another's"][:2] == [levels["fog"][0], levels["night"][1]]
    # gains of .1, .2 and .05: their deviation .0764, by the root of 3, times Student's 4.303
    assert gains["night"][:2] == ["+.117 ± .190", "+.100"], "of two seeds no interval"
    assert gains["more"] == ["+.000 ± .000"] * 3


def test_numbers_lose_only_a_leading_zero():
    assert style_table.level({"0": 10.25}) == "10.250" and style_table.level({}) == ""
    assert style_table.gain({"0": 0.25, "1": 1.0}, {"0": 0.5}) == "−.250"
    assert style_table.gain({"0": 0.25}, {"1": 0.5}) == ""


def test_another_phrase_is_the_mean_of_all_others():
    rows = {name: {"snow": {"0": value, name: 0.9}} for name, value in (("fog", 0.2), ("night", 0.4))}
    rows |= {"snow": {"snow": {"0": 0.7}}}
    style_table.add_phrases(rows, ["night", "fog", "snow", "sketch"])
    assert rows["another's"]["snow"] == {"0": pytest.approx(0.3)}, "of the seeds that all have"
    assert rows["its own phrase"]["snow"] == {"0": 0.7}
    alone = {"fog": {"fog": {"0": 0.5}}}
    style_table.add_phrases(alone, ["fog"])
    assert list(alone) == ["fog"]


def test_mistakes(measured, complaint, capsys):
    said = complaint(style_table, measured, "--figure", "mean_f2")
    assert "no figure mean_f2; it has mean_f1, miou" in said and said.count("\n") == 1
    assert "none: no SEED/ROW/DOMAIN.json" in complaint(style_table, measured / "none")
    style_table.main(style_table.get_parser().parse_args([str(measured), "--against", "moer"]))
    assert "no row `moer` to compare with" in capsys.readouterr().out
