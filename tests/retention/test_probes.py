"""Probes: the ridge classifier against its definition, and the probes of the embedded backbones."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import Ridge

from qgoft.config.compose import compose_settings
from qgoft.config.retention import retention_settings
from qgoft.errors import QgoftError
from qgoft.retention.language import Knowledge, Language, LmEval
from qgoft.retention.measure import build_probes
from qgoft.retention.probes import ProbeContext
from qgoft.retention.similarity import Similarity
from qgoft.retention.transfer import STRENGTHS, RidgeFit, Transfer
from qgoft.run_id import identify
from qgoft.tasks.registry import suite_class


def context(tmp_path, *words, suite="glue", asked=()):
    settings = compose_settings([f"results.root={tmp_path}", *words])
    run_id = dataclasses.replace(identify(settings), directory=Path(tmp_path))
    return ProbeContext(settings, run_id, retention_settings(settings.protocol, suite, asked), Accelerator(cpu=True))


def backbone(made):
    torch.manual_seed(0)
    return suite_class(made.settings).build_model(made.settings, made.run_id.model.directory).eval()


def value_of(probe, model):
    return probe.measure(model, probe.depends_on)


def test_ridge_minimises_generalised_cross_validation():
    """The strength is the best one by the definition with the hat matrix, and the weights are those of scikit-learn."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40, 8, dtype=torch.float64, generator=random) * torch.arange(1, 9) + 3
    y = (x[:, :2] / 4 + torch.randn(40, 2, dtype=torch.float64, generator=random)).double()
    fit = RidgeFit(x, y)
    scaled = ((x - x.mean(0)) / x.std(0)).numpy()
    centred = y.numpy() - y.numpy().mean(0)
    scores = []
    for strength in STRENGTHS.numpy() * 40:
        hat = scaled @ np.linalg.solve(scaled.T @ scaled + strength * np.eye(8), scaled.T) + 1 / 40
        residual = centred - hat @ centred
        scores.append((residual**2).sum() / (1 - np.trace(hat) / 40) ** 2)
    assert fit.strength == pytest.approx(STRENGTHS[int(np.argmin(scores))].item() * 40)
    expected = Ridge(fit.strength).fit(scaled, y.numpy()).predict(scaled)
    np.testing.assert_allclose(fit.predict(x).numpy(), expected, atol=1e-10)


def test_ridge_with_a_constant_feature():
    x = torch.ones(10, 3, dtype=torch.float64)
    fit = RidgeFit(x, torch.arange(10, dtype=torch.float64)[:, None])
    assert fit.predict(x).flatten().tolist() == pytest.approx([4.5] * 10)


def test_transfer_of_texts(tmp_path):
    """The pretrained backbone knows tasks that it was not trained on, the random one little; the run's own task is left out."""
    made = context(tmp_path, "task=glue/rte", asked=["retention.tasks=[glue/rte,glue/qqp,glue/stsb]"])
    probe = Transfer(made)
    found = value_of(probe, backbone(made))
    assert list(found) == ["transfer/qqp", "transfer/stsb"]
    assert found["transfer/qqp"].value > 80
    assert found["transfer/qqp"].n == 500
    assert found["transfer/qqp"].chance == pytest.approx(50, abs=3)
    assert found["transfer/stsb"].value > 70
    assert found["transfer/stsb"].chance is None
    assert value_of(probe, backbone(made)) == found
    other = context(tmp_path, "task=glue/rte", "model=pocket_deberta_random", asked=["retention.tasks=[glue/qqp]"])
    assert value_of(Transfer(other), backbone(other))["transfer/qqp"].value < found["transfer/qqp"].value - 5
    batch = next(probe.batches())
    assert "labels" not in batch
    assert batch["input_ids"].shape[0] == 16


def test_transfer_of_images(tmp_path):
    made = context(tmp_path, "task=vtab/dtd", suite="vtab", asked=["retention.tasks=[vtab/svhn]", "retention.test_rows=100"])
    value = value_of(Transfer(made), backbone(made))["transfer/svhn"]
    assert value.n == 100
    assert value.value > value.chance + 5


def test_transfer_without_another_task(tmp_path):
    with pytest.raises(QgoftError, match=r"needs tasks other than glue/rte"):
        Transfer(context(tmp_path, "task=glue/rte", asked=["retention.tasks=[glue/rte]"]))


def test_transfer_of_rows_without_labels(tmp_path):
    with pytest.raises(QgoftError, match="squad/v1 do not have one label each"):
        Transfer(context(tmp_path, "task=glue/rte", asked=["retention.tasks=[squad/v1]"]))


def test_similarity(tmp_path):
    made = context(tmp_path, "task=glue/rte")
    value = value_of(Similarity(made), backbone(made))["similarity"]
    assert value.n == 500
    assert 0 < value.value < 100
    assert 0 < value.standard_error < 10


def decoder(tmp_path, *asked):
    return context(tmp_path, "task=math/gsm8k", suite="math", asked=asked)


def test_language(tmp_path):
    """The loss is that of transformers over the same windows, far below the entropy of the tokens."""
    made = decoder(tmp_path, "retention.text_tokens=3000")
    probe, model = Language(made), backbone(decoder(tmp_path))
    value = value_of(probe, model)["language"]
    losses = [model(input_ids=window[None], labels=window[None]).loss.item() * (len(window) - 1) for window in probe.windows]
    assert value.value == pytest.approx(sum(losses) / value.n, rel=1e-5)
    assert value.n == sum(len(window) - 1 for window in probe.windows)
    assert value.value < value.chance - 1
    assert not value.higher_is_better
    assert 0 < value.standard_error < 0.2


def test_language_of_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the dog chases the cat . " * 400)
    value = value_of(Language(decoder(tmp_path, f"retention.text={path}")), backbone(decoder(tmp_path)))["language"]
    assert math.isfinite(value.value)
    path.write_text("dog")
    with pytest.raises(QgoftError, match="fewer than two windows"):
        Language(decoder(tmp_path, f"retention.text={path}"))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(QgoftError, match=r"retention.text=.*cannot be read as a text"):
        Language(decoder(tmp_path, f"retention.text={path}"))
    with pytest.raises(QgoftError, match="needs a text"):
        Language(context(tmp_path, "task=math/gsm8k", suite="math", asked=["retention.text=null"]))


def test_knowledge(tmp_path):
    value = value_of(Knowledge(decoder(tmp_path)), backbone(decoder(tmp_path)))["knowledge"]
    assert value.value > value.chance


def test_knowledge_is_left_out_of_runs_that_report_it(tmp_path):
    own = context(tmp_path, "task=instruct/mmlu", suite="instruct", asked=["retention.probes=[language,knowledge]"])
    assert [type(probe) for probe in build_probes(own)] == [Language]
    only = context(tmp_path, "task=instruct/mmlu", suite="instruct", asked=["retention.probes=[knowledge]"])
    with pytest.raises(QgoftError, match="this run reports itself"):
        build_probes(only)


def test_values_depend_on_the_settings_of_a_task(tmp_path):
    """Two protocols that read the same rows with other lengths have other values."""
    made = [context(tmp_path, "task=glue/rte", asked=["retention.tasks=[glue/qqp]", *words]) for words in ([], ["retention.test_rows=100"])]
    first, second = (Transfer(one).depends_on["transfer/qqp"] for one in made)
    assert first != second
    assert first["length"] == 64
    assert first["splits"] == "test"


def test_task_of_lm_eval(tmp_path, monkeypatch):
    """Metric, standard error and size are read from lm-eval's results (a stand-in of its interface)."""
    import sys
    from types import ModuleType, SimpleNamespace

    results = {
        "results": {
            "ifeval": {
                "alias": "ifeval",
                "prompt_level_strict_acc,none": 0.2,
                "inst_level_strict_acc,none": 0.25,
                "prompt_level_strict_acc_stderr,none": 0.01,
            }
        },
        "n-samples": {"ifeval": {"original": 541, "effective": 541}},
        "higher_is_better": {"ifeval": {"inst_level_strict_acc": True}},
    }
    package, models, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface"), ModuleType("lm_eval.tasks")
    package.__version__ = "0.4.13"
    package.simple_evaluate = lambda model, tasks: results
    models.HFLM = lambda **given: SimpleNamespace(**given)
    tasks.TaskManager = lambda: SimpleNamespace(all_tasks=["ifeval"])
    for name, module in {
        "lm_eval": package,
        "lm_eval.models": ModuleType("lm_eval.models"),
        "lm_eval.models.huggingface": models,
        "lm_eval.tasks": tasks,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    probe = LmEval(decoder(tmp_path), "ifeval")
    value = value_of(probe, backbone(decoder(tmp_path)))["ifeval"]
    assert (value.value, value.standard_error, value.n, value.higher_is_better) == (25.0, None, 541, True)
    with pytest.raises(QgoftError, match="unknown task of lm-eval 'ifevil'"):
        LmEval(decoder(tmp_path), "ifevil")
