"""Versions are written once; the skeleton is what it says."""

import re
import subprocess
import tomllib

import yaml


def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_environment_yml_holds_the_same_ranges(repository):
    data = yaml.safe_load((repository / "environment.yml").read_text())
    pip = next(item["pip"] for item in data["dependencies"] if isinstance(item, dict))
    spec = project(repository)
    assert sorted(pip) == sorted([*spec["dependencies"], *spec["optional-dependencies"]["dev"], "-e ."])
    assert data["name"] == "qgoft"


def test_version_is_written_alike(repository):
    import qgoft

    assert project(repository)["version"] == qgoft.__version__


def test_top_level(repository):
    for name in (
        "configs",
        "qgoft",
        "scripts",
        "results",
        "docs",
        "tests",
        "Makefile",
        "environment.yml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ):
        assert (repository / name).exists(), name
    for name in ("ARCHITECTURE.md", "DEVIATIONS.md", "LOG.md", "data.md"):
        assert (repository / "docs" / name).exists(), name
    assert (repository / ".ci" / "run").stat().st_mode & 0o100


def test_help_lists_every_target(repository):
    text = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True).stdout
    makefile = (repository / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    items = text.partition("items of the papers:")[2].partition("names and defaults")[0].split()
    assert {"table1", "psoft-table22", "lambda", "flexibility"} <= set(items)
    for target in set(phony) - {"$(ITEMS)"}:
        assert re.search(rf"^  {target}\s+\S", text, re.M), f"make help does not list {target}"


def test_torch_pin_is_that_of_the_project(repository):
    printed = subprocess.run(["python3", "scripts/torch_pin.py"], cwd=repository, capture_output=True, text=True, check=True).stdout.strip()
    assert printed in project(repository)["dependencies"]


def test_no_paths_of_a_machine_are_committed(repository):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, tracked):
        path = repository / name
        if path.suffix in (".safetensors", ".gz", ".png") or not path.is_file():
            continue
        text = path.read_text()
        for place in ("/" + "work/", "/" + "root/", "/" + "tmp/"):
            assert place not in text, f"{name} holds {place}"
