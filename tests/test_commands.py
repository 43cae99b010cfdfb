"""The command `refusal-dial`: what it runs, what it completes, and that a wheel carries it all."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from script_case import ROOT, SCRIPTS

from refusal_dial.cli import commands
from refusal_dial.common import DialError


def test_every_script_has_one_command():
    found = commands.scripts()
    assert sorted(found.values()) == sorted(SCRIPTS)
    for name, path in found.items():
        assert commands.script_of([*name.split(), "--layer", "3"]) == (path, ["--layer", "3"])
    assert commands.script_of(["run", "patch-sites.py"])[0].stem == "patch_sites"
    for name in ("export", "export-direction"):  # the second is the script's own
        path, left = commands.script_of([name, "d.safetensors", "--to", "svec"])
        assert (path.stem, left) == ("export_direction", ["d.safetensors", "--to", "svec"])


def test_the_overview_names_every_command_with_its_question(capsys):
    commands.main([])
    shown = capsys.readouterr().out
    for name in ("demo", *commands.scripts()):
        assert f"\n  {name} " in shown
    assert "patch_sites" in shown
    assert "At which layers" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["doctr"], "unknown command 'doctr': did you mean 'doctor'?"),
        (["run", "patch_site"], "unknown experiment 'patch_site': did you mean 'patch_sites'?"),
        (["plot", "xtest"], "unknown figure 'xtest': did you mean 'xstest'?"),
        (["run"], "refusal-dial run needs one of analyze_layers, "),
        (["run", "--layer"], "refusal-dial run needs one of"),
        (["run", "patch_sites", "--layr", "3"], "unknown flag --layr: did you mean --layer"),
    ],
)
def test_a_slip_is_one_line_before_anything_runs(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        commands.main(words)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], ["doctor"]),
        (["ex"], ["experiment-log", "export", "export-model"]),
        (["export", "--to"], ["--to"]),
        (["run", "patch_r"], ["patch_resid_pre"]),
        (["plot", "xs"], ["xstest"]),
        (["run", "patch_sites", "--lay"], ["--layer"]),
        (["doctor", "--dt"], ["--dtype"]),
        (["demo", "--n-ran"], ["--n-random"]),
    ],
)
def test_tab_completes_commands_names_and_flags(words, offered, capsys):
    commands.main(["--complete", *words])
    assert capsys.readouterr().out.split() == offered


def test_bash_takes_the_completion(tmp_path):
    done = subprocess.run(
        ["/bin/bash", "-c", f"{commands.COMPLETION}\ncomplete -p refusal-dial"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_refusal_dial" in done.stdout


def test_a_reader_who_has_gone_is_no_error_of_the_overview():
    listed = subprocess.Popen(
        [sys.executable, "-m", "refusal_dial", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    listed.stdout.close()
    _, err = listed.communicate()
    assert (listed.returncode, err) == (0, "")


def test_a_package_without_its_scripts_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "PACKAGE", tmp_path / "refusal_dial")
    with pytest.raises(DialError, match="this installation has no scripts: install the package"):
        commands.folder("scripts")


@pytest.mark.slow
def test_a_wheel_runs_from_any_folder(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path)]
    made = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no wheel can be built here: {made.stderr[-200:]}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    entry = next((tmp_path / "installed").glob("*.dist-info/entry_points.txt")).read_text()
    assert "refusal-dial = refusal_dial.cli.commands:main" in entry
    assert wheel.stat().st_size < 60e6
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    given = ["--alphas=-0.5,0,0.5", "--n-random=1", "--controls=holdout", "--device=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "refusal_dial", "run", "steering_holdout_control", *given],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "turns refusal, layer 20: yes" in done.stdout
    assert list((elsewhere / "runs").rglob("summary.csv"))
