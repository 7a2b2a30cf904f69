"""The installed package in an empty directory, without make, checkout or network."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

SOURCES = (
    "qgoft",
    "configs",
    "results/published",
    "results/measured/settings.json.gz",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


@pytest.mark.slow
def test_wheel_does_what_make_does(repository, tmp_path):
    checkout, installed, empty = tmp_path / "checkout", tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    for name in SOURCES:
        source, target = repository / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, target)
    words = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), "."]
    subprocess.run([sys.executable, "-m", *words], cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)

    def qgoft(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "QGOFT_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "qgoft", *arguments]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    table = qgoft("glue", "--method", "lora", "--tasks", "cola", "train.max_steps=4", "train.num_evals=1")
    assert "LoRA r=8" in table
    assert "published LoRA" in table, "the published figures come with the wheel"
    assert len(list((empty / "results" / "runs").iterdir())) == 1
    assert f"package {installed}" in qgoft("doctor")
    assert "1 records" in qgoft("report")
    assert "LoRA r=8" in (empty / "results" / "report.html").read_text()
    assert [path.name for path in empty.iterdir()] == ["results"]
    shutil.rmtree(tmp_path / "cache")
    assert " planned" in qgoft("status")
    assert not (tmp_path / "cache" / "settings").exists(), "the wheel has the composed settings of all items"
