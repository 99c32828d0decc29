# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys

import pytest
from support.recordings import image_bag, write_folder
from support.without_ros import WITHOUT_ROS

from xsvggt_ros import cli

COMMAND_WITHOUT_ROS = WITHOUT_ROS + "from xsvggt_ros.cli import main\nsys.exit(main())"


@pytest.mark.parametrize("kind", ["folder", "bag"])
def test_replay_without_ros(tmp_path, kind):
    source = write_folder(tmp_path / "in", 2) if kind == "folder" else image_bag(tmp_path / "in", 2)
    command = [sys.executable, "-c", COMMAND_WITHOUT_ROS, "replay", source, "--output", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "bag" / "bag.mcap").stat().st_size > 0


def test_help_lists_the_commands_and_loads_none(capsys, monkeypatch):
    monkeypatch.setattr(cli, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0 and f"xsvggt {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "dance",
        "--foo",
        "-v",
        "--",
        "-- replay",
        "--output out replay in",
        "replay",
        "replay in --output out --max-frame 1",
    ],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2 and "usage: xsvggt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("replay in --output out --cache.budget_tokns 5", "--cache.budget_tokns (did you mean --cache.budget_tokens?)"),
        ("replay in --output out --cache.budget_tokns=5", "--cache.budget_tokns (did you mean --cache.budget_tokens?)"),
        ("replay in --output out --cache.budget 5", "--cache.budget (did you mean --cache.budget_mib?)"),
        ("replay in --output out --seed 1", "--seed (did you mean --cache.seed?)"),
        ("replay in --output out --max_frames 1", "--max_frames (did you mean --max-frames?)"),
        ("replay in --output out --no-rectfy", "--no-rectfy (did you mean --no-rectify?)"),
        ("replay --worldframe map in --output out", "--worldframe (did you mean --world_frame?)"),
        ("replay in another --output out", "another"),
        (
            "replay in --output out --segment.enabled true",
            "true; what is true or false is written --NAME and --no-NAME",
        ),
        ("rooms --output out --frame 3", "--frame (did you mean --frames?)"),
        ("--foo replay x", "--foo before replay, whose flags follow it"),
        ("-v replay x --output out", "-v before replay, whose flags follow it"),
        ("--output=out replay x", "--output=out before replay, whose flags follow it"),
        ("--verbose parameters", "--verbose before parameters, whose flags follow it"),
    ],
)
def test_an_unknown_flag_is_named_with_the_nearest(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": error: unrecognized arguments: {said}")


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (ValueError("the fix"), 2, "xsvggt replay: the fix\n"),
        (FileNotFoundError("no such file"), 2, "xsvggt replay: no such file\n"),
        (PermissionError("not allowed"), 2, "xsvggt replay: not allowed\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_the_user_are_one_sentence(monkeypatch, capsys, raised, code, printed):
    def run(args):
        raise raised

    monkeypatch.setattr("xsvggt_ros.replay.command.run", run)
    assert cli.main(["replay", "in", "--output", "out"]) == code
    assert capsys.readouterr().err == printed


def test_our_own_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("xsvggt_ros.replay.command.run", lambda args: {}["bug"])
    with pytest.raises(KeyError):
        cli.main(["replay", "in", "--output", "out"])


@pytest.mark.parametrize(("set_before", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_wants_that(set_before, then, monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if set_before:
        monkeypatch.setenv("OMP_WAIT_POLICY", set_before)
    assert cli.main(["parameters"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == then
    monkeypatch.delenv("OMP_WAIT_POLICY")  # what the command has set is not a later test's
