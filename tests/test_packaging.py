"""Versions, locks, documents and files of the project."""

import re
import subprocess
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def suite(spec):
    """Return the requirements of the experiments and their tests."""
    return [*spec["optional-dependencies"]["suite"], *spec["optional-dependencies"]["dev"]]


def test_environment_yml_has_the_same_ranges(repository):
    data = yaml.safe_load((repository / "environment.yml").read_text())
    pip = next(item["pip"] for item in data["dependencies"] if isinstance(item, dict))
    spec = project(repository)
    assert sorted(pip) == sorted([*suite(spec), "-e ."])
    assert data["name"] == "qgoft"


def test_version_is_consistent(repository):
    import qgoft

    assert project(repository)["version"] == qgoft.__version__


def test_top_level_files(repository):
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
    (targets,) = re.findall(r"^TARGETS := (.*)$", makefile, re.M)
    items = text.partition("items of the papers:")[2].partition("names and defaults")[0].split()
    assert {"table1", "psoft-table22", "lambda", "flexibility"} <= set(items)
    for target in targets.split():
        assert re.search(rf"^  {target}\s+\S", text, re.M), f"make help does not list {target}"


def test_torch_pin_matches_pyproject(repository):
    printed = subprocess.run(["python3", "scripts/torch_pin.py"], cwd=repository, capture_output=True, text=True, check=True).stdout.strip()
    assert printed in suite(project(repository))


def locked(repository, name):
    """Package -> versions (some differ by platform), and how many checksums each entry has."""
    entries = (repository / "requirements" / f"{name}.lock").read_text().replace("\\\n", " ").splitlines()
    versions = {}
    for entry in entries:
        package, version, rest = re.fullmatch(r"(\S+?)==(\S+)(.*)", entry).groups()
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), f"{name}.lock: {package} has no checksum"
        versions.setdefault(canonicalize_name(package), []).append(version)
    return versions


def test_locks_cover_dependencies(repository):
    spec = project(repository)
    dev, wanted = locked(repository, "dev"), suite(spec)
    for requirement in map(Requirement, wanted):
        if requirement.name == "torch":
            continue
        versions = dev[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: locked is {versions}; run `make lock`"
    (triton,) = map(Requirement, spec["optional-dependencies"]["triton"])
    assert all(triton.specifier.contains(version) for version in locked(repository, "triton")["triton"])
    # The right build of torch depends on the machine, and dependencies of its GPU builds must not be in the lock.
    assert not [name for name in dev if re.match(r"torch|triton|nvidia|cuda", name)]
    assert {"setuptools", "wheel"} <= set(locked(repository, "build"))


def test_make_installs_from_the_lock(repository):
    printed = subprocess.run(
        ["make", "--dry-run", "--always-make", "test", "PYTHON=python3"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    installs = re.findall(r"-m pip install[^&;}\n]*", printed)
    torch, *others = installs
    assert "torch==" in torch or "torch_pin" in torch
    assert all(("--require-hashes" in line or "--editable ." in line) and "--no-deps --no-build-isolation" in line for line in others), (
        others
    )


def tracked(repository, *patterns):
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=repository, capture_output=True, text=True, check=True).stdout
    return [repository / name for name in filter(None, listed.split("\0"))]


def test_no_machine_paths_are_committed(repository):
    for path in tracked(repository):
        if path.suffix in (".safetensors", ".parquet", ".gz", ".png", ".pdf") or not path.is_file():
            continue
        text = path.read_text()
        for place in ("/" + "work/", "/" + "root/", "/" + "tmp/"):
            assert place not in text, f"{path} holds {place}"


def test_document_links_exist(repository):
    pages = [page for page in tracked(repository, "*.md") if repository / "results" not in page.parents]
    assert len(pages) > 10
    links = {(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()) if "://" not in link}
    assert len(links) > 30
    assert not [f"{page.name}: {link}" for page, link in sorted(links) if not (page.parent / link).exists()]


PATH = re.compile(r"(?<![\w/.<>])(?:configs|docs|qgoft|requirements|results/(?:example|measured|published)|scripts|tests)/[\w/.-]*\w")


def test_paths_in_text_exist(repository):
    """Except in CHANGELOG, which names removed files, and in the guides, which create files."""
    without = {repository / "CHANGELOG.md", repository / "docs" / "extending.md", repository / "tests" / "test_extending.py"}
    texts = [path for path in tracked(repository, "*.md", "*.py", "*.yaml", "Makefile") if path not in without and path.is_file()]
    named = {(path.relative_to(repository), name) for path in texts for name in PATH.findall(path.read_text())}
    assert len(named) > 150
    assert not sorted(f"{path}: {name}" for path, name in named if not (repository / name).exists())


def test_results_are_few_files(repository):
    assert 20 < len(tracked(repository, "results")) < 250
