"""What a command imports before it knows what to do: little, for it is waited for."""

import json
import subprocess
import sys

import pytest

from svdcut.cli.app import COMMANDS

CODE = """
import json, sys
from typer.testing import CliRunner
from svdcut.cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
print(json.dumps([result.exit_code, sorted(sys.modules)]))
"""
HEAVY = {"torch", "numpy", "huggingface_hub", "jsonschema", "transformers", "yaml"}
OWN = {
    "truncate": {"truncation"},
    "extract": {"truncation"},
    "spectrum": {"spectra"},
    "evaluate": {"evaluation"},
    "sweep": {"truncation", "evaluation", "sweeps"},
    "verify": {"verification"},
}


def imported(*words):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words], capture_output=True, text=True, check=True
    )
    status, modules = json.loads(done.stdout)
    assert status == 0
    return set(modules)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_the_root_imports_no_command(word):
    modules = imported(word)
    assert not HEAVY & modules
    ours = {name for name in modules if name.startswith("svdcut.")}
    assert ours <= {
        f"svdcut.{n}"
        for n in (
            *("cli", "cli.app", "cli.guard", "errors", "option", "option_kinds", "shown"),
            "worker",
        )
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_its_own_part_of_the_api(name):
    modules = imported(name, "--help")
    assert not HEAVY & modules
    parts = {m.removeprefix("svdcut.api.") for m in modules if m.startswith("svdcut.api.")}
    assert parts == OWN[name] | {"public"}


def test_the_package_offers_what_its_list_of_names_says():
    import svdcut

    assert all(getattr(svdcut, name) is not None for name in svdcut.__all__)
