"""The project as a whole: names that don't collide, a README whose commands exist."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_args as parse_launcher

from launch import convert, generate, merge, show, stop, train
from launch.demo import __main__ as demo
from launch.demo import stages
from launch.demo.folder import Folder
from preprocess import options, verify
from preprocess.codec.load import CODEC_HELP
from preprocess.corpus.base_model import how_to_name_a_base
from tests.test_doors import doors

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("preprocess", "engine", "launch")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
README = "".join(PAGES.values())
PARSERS = {
    "preprocess.shard": options.parse_settings,
    "launch.convert": convert.parse_arguments,
    "launch.merge": merge.parse_arguments,
    "launch.generate": generate.parse_arguments,
    "launch.show": show.parse_arguments,
    "launch.stop": stop.parse_arguments,
    "launch.demo": demo.parse_arguments,
    "preprocess.verify": verify.parse_arguments,
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 3, package
    return found


@pytest.mark.parametrize("door", [*PARSERS, "launch.train"])
def test_no_command_asks_a_hub(door):
    """huggingface_hub takes the setting as it is imported, whoever imports it."""
    door = "launch.demo.__main__" if door == "launch.demo" else door
    says = f"import {door}, huggingface_hub.constants as hub; print(hub.HF_HUB_OFFLINE)"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", says], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True"


def readme_commands() -> list[list[str]]:
    """The words of every command in README and docs, settings before the program left out.

    Those of the shell blocks, and those that stand in a line of text and begin with `python -m`, with arguments.
    """
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines() + re.findall(
        r"`(python -m (?!pip)[^\s`]+ [^`]+)`", README
    )
    commands = [shlex.split(line, comments=True) for line in lines]
    return [_without_settings(words) for words in commands if words]


def _without_settings(words: list[str]) -> list[str]:
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return words


def launched(program: str) -> Iterator[list[str]]:
    return (words[1:] for words in readme_commands() if words[0] == program)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_bears_the_name_of_another(package):
    # `deepspeed launch/train.py` puts launch/ first on sys.path: an inspect.py there would break `import torch`.
    installed = {name for name, owners in packages_distributions().items() if set(owners) != {"higgs-voice-training"}}
    inside = [path for path in (ROOT / package).rglob("*") if path.is_dir() or path.suffix == ".py"]
    assert len(inside) > 3
    assert [path for path in (ROOT / package, *inside) if path.stem in sys.stdlib_module_names | installed] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_code_is_a_package(package):
    """Else the wheel would lack it."""
    code = {path.parent for path in modules(package)}
    assert [folder for folder in code if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_unpickled_and_no_code_of_a_model_folder_runs(package):
    """Where ruff has no rule: it knows pickle and eval, but none of these settings."""
    unsafe = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False}
    settings = [
        (path, node.value.lineno, node.arg, ast.unparse(node.value))
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg in unsafe
    ]
    assert [found for found in settings if found[3] != str(not unsafe[found[2]])] == []


def test_the_readme_shows_every_command_with_flags_that_exist():
    shown = set()
    for words in launched("python"):
        assert words[0] == "-m"
        PARSERS[words[1]](words[2:])  # a flag that is not there, or a missing one, raises
        shown.add(words[1])
    for words in launched("deepspeed"):
        launcher = parse_launcher(words)
        assert (ROOT / launcher.user_script).is_file()
        flags = train.parse_arguments(launcher.user_args)
        assert (ROOT / flags.recipe).is_file()
        assert (ROOT / flags.deepspeed).is_file()
        shown.add(launcher.user_script)
    assert shown == {*PARSERS, "launch/train.py"}
    assert doors().keys() == {*PARSERS, "launch.train"}


def test_the_demo_runs_the_commands_of_the_readme():
    folder = Folder(Path("demo"))
    reference = {"audio": "huda/000.wav", "text": "نسيت المفتاح على الطاولة."}
    commands = [stages.shard_command(folder), stages.train_command(folder, num_ranks=2), stages.merge_command(folder)]
    commands.append(stages.generate_command(folder, reference))
    shown = [words for words in readme_commands() if "demo/merged" in words or "demo/shards" in words]
    assert shown[:4] == commands


def test_the_readme_and_the_errors_download_the_same_revisions():
    commands = [" ".join(words) for words in launched("hf")]
    for name, error in (("3B-base", how_to_name_a_base("--model")), ("v2-tokenizer", CODEC_HELP)):
        (revision,) = re.findall(r"--revision ([0-9a-f]{40})", error)
        (command,) = (command for command in commands if name in command)
        assert f"--revision {revision}" in command


def test_the_readme_names_every_recipe():
    recipes = [path.name for path in (ROOT / "launch" / "recipes").glob("*.yaml")]
    assert len(recipes) >= 3
    assert [name for name in recipes if f"launch/recipes/{name}" not in README] == []


def test_the_readme_names_make_targets_and_files_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", README)) | {words[0] for words in launched("make")}
    assert named
    assert named <= targets
    links = [(page.parent, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert len(links) > 10
    assert [link for folder, link in links if not (folder / link).exists()] == []
