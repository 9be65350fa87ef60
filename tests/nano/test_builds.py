"""The commands that make nano's report are ones that the program takes, in an order that works."""

from pathlib import Path

from mimo_edge.scripts.cli import parser_of
from mimo_edge.scripts.nano.builds import CALIBRATION, FLOATS, QUANTISED, steps


def test_every_step_is_a_command_that_has_what_it_needs(tmp_path: Path) -> None:
    made: set[Path] = set()
    for words in steps(tmp_path):
        parser, _ = parser_of(words)
        args = parser.parse_args(words)
        if words[0] in ("quantize", "calibrate"):
            needs = {args.bundle, getattr(args, "calibration", None)} - {None}
        else:
            needs = set(getattr(args, "candidates", ()))
        assert needs <= made, words
        made.add(args.output)
    assert [path.name for path in args.candidates] == [*FLOATS, *QUANTISED]


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    for name in (*FLOATS, CALIBRATION, *QUANTISED):
        (tmp_path / name).mkdir()
    assert [words[0] for words in steps(tmp_path)] == ["validate"]
