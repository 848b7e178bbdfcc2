import dataclasses
import json
import math

import pytest

from ldseg import ROOT
from ldseg.orchestration.promotion.gates import SECTIONS, Gates, GatesError, read_gates

SHIPPED = ROOT / "platform" / "gates.toml"  # a link to the one that is installed


def test_the_shipped_file_names_every_gate_and_holds_the_defaults():
    gates = read_gates(SHIPPED)
    assert dataclasses.replace(gates, source="defaults") == Gates()
    text = SHIPPED.read_text()
    for name, kind in SECTIONS.items():
        body = text.split(f"[{name}]")[1].split("\n[")[0]
        assert [line.split(" =")[0] for line in body.splitlines() if " = " in line] == [
            entry.name for entry in dataclasses.fields(kind)
        ]


def test_what_a_file_leaves_out_has_its_default_and_whole_numbers_are_numbers(tmp_path):
    file = tmp_path / "gates.toml"
    file.write_text("[floors]\nnll = 1\ndice = -inf\n[bundle]\ncalibration = true\n")
    gates = read_gates(file)
    assert gates.floors.nll == 1.0 and gates.bundle.calibration and gates.margins == Gates().margins
    assert gates.digest != Gates().digest and gates.values()["floors"]["ece"] == "inf"
    assert json.loads(json.dumps(gates.values(), allow_nan=False))["floors"]["dice"] == "-inf"
    assert Gates().floors.ece == math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[flors]\ndice = 1", r"there is no section \[flors\], did you mean floors\?"),
        ("[floors]\ndize = 1", r"there is no floors.dize, did you mean dice\?; there are dice, worst"),
        ("[floors]\nsample_diversity = 0.001", r"there is no floors.sample_diversity; there are dice, worst"),
        ('[floors]\ndice = "high"', "floors.dice must be a number, got 'high'"),
        ("[floors]\ndice = nan", "floors.dice must be a number, got nan"),
        ("[cases]\nmin_cases = 2.5", "cases.min_cases must be a whole number, got 2.5"),
        ("[cases]\nmin_cases = true", "cases.min_cases must be a whole number, got True"),
        ("[cases]\nconfidence = 95", "cases.confidence must lie between 0 and 1, got 95"),
        ('[cases]\njudge_by = "median"', 'judge_by must be "mean" or "bound"'),
        ("[margins]\nnll = -1", "margins.nll must be at least 0, got -1"),
        ("floors = 1", r"floors must be a section, written as \[floors\]"),
        ("[floors\n", "is no TOML"),
        (None, "can't be read"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_that_names_it(tmp_path, text, message):
    file = tmp_path / "gates.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(GatesError, match=message) as caught:
        read_gates(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_an_option_of_the_command_line_replaces_one_value():
    gates = Gates().with_values(floors__dice=0.4, cases__min_cases=None)
    assert gates.floors.dice == 0.4 and gates.cases == Gates().cases
