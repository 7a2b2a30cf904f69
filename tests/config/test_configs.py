"""Every (protocol, task, method) composes, or is unsupported with a reason."""

import itertools
import re

import pytest
import yaml

from qgoft.config.compose import compose_settings
from qgoft.config.keys import settings_in_key, settings_of_training
from qgoft.config.locations import CONFIGS
from qgoft.config.suites import config_names, read_config, suite_info, unsupported_reason
from qgoft.errors import QgoftError
from qgoft.methods.registry import REGISTRY, parse_variant

PROTOCOLS = ["pocket", "small", "goft_icml24", "psoft_iclr26"]
METHODS = """base full linear bitfit lora dora pissa adalora oft oft_v2 boft hra psoft goft goft_star qgoft goft_v2 qgoft_v2
h_adapter p_adapter fact_tt fact_tk lora_xs svft_p oft_paper""".split()


def test_config_groups_are_complete():
    assert config_names("protocol") == sorted(PROTOCOLS)
    assert config_names("method") == sorted(METHODS) == sorted(REGISTRY)
    glue = [f"glue/{t}" for t in "mnli sst2 cola qqp qnli rte mrpc stsb".split()]
    vtab = [f"vtab/{t}" for names in suite_info("vtab").groups.values() for t in names]
    assert len(vtab) == 19
    decoders = [f"instruct/{t}" for t in "alpaca vicuna mmlu".split()] + ["math/gsm8k", "math/math"]
    decoders += [f"commonsense/{t}" for t in "boolq piqa siqa hellaswag winogrande arc_e arc_c obqa".split()]
    assert config_names("task") == sorted([*glue, "squad/v1", *vtab, "vtab/digits", *decoders])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_combinations_compose_or_have_a_reason(protocol):
    # Suites whose tasks share their settings: every method on one task, and one method on every task.
    alike = ("vtab/", "math/", "commonsense/", "instruct/")
    for task, method in itertools.product(config_names("task"), METHODS):
        if task.startswith(alike) and method != "qgoft" and task not in ("vtab/dtd", "math/gsm8k", "commonsense/boolq", "instruct/mmlu"):
            continue
        words = [f"protocol={protocol}", f"task={task}", f"method={method}"]
        reason = unsupported_reason(protocol, task, method)
        if reason:
            with pytest.raises(QgoftError, match="does not support method"):
                compose_settings(words)
            continue
        suite, _, name = task.partition("/")
        composed = ("qgoft",) if suite == "glue" and name != "cola" else METHODS if suite == "glue" else ("qgoft", "lora", "linear", "base")
        if method not in composed:
            # Composing takes a fifth of a second. These differ from the method's glue/cola and from qgoft's task by a line of two tables.
            rows = yaml.safe_load((CONFIGS / "recipe" / protocol / f"{method}.yaml").read_text())[suite]
            assert rows[name if name in rows else "all"]["lr"] > 0
            continue
        settings = compose_settings(words)
        assert settings.optim.lr > 0
        parse_variant(REGISTRY[method], settings.method.variant)
        assert (settings.method.penalty > 0) == method.startswith("qgoft")
        assert settings.method.lr_source


def test_unsupported_reasons_have_no_settings():
    for protocol in PROTOCOLS:
        for name in read_config(f"protocol/{protocol}").get("unsupported", {}):
            suite, _, method = name.partition("/")
            tasks = [task for task in config_names("task") if task == name or task.startswith(f"{suite}/")]
            if name in METHODS:
                assert not (CONFIGS / "recipe" / protocol / f"{name}.yaml").exists(), (
                    f"{protocol}: {name} has a recipe and a reason against it"
                )
            elif method in METHODS:
                assert tasks
                assert suite not in read_config(f"recipe/{protocol}/{method}"), f"{protocol}: {name} has settings and a reason against it"
            else:
                assert tasks, f"{protocol}: {name} is no suite, task or method"


def test_goft_table_5_is_transcribed():
    printed = {
        "mnli": (6, 5e-4, 6e-4, 0.001, 256),
        "sst2": (8, 8e-4, 8e-4, 0.01, 128),
        "cola": (20, 1.6e-3, 8e-4, 0.05, 64),
        "qqp": (5, 5e-4, 1.5e-3, 0.001, 320),
        "qnli": (5, 1.2e-3, 1.2e-3, 0.001, 512),
        "rte": (30, 2e-3, 2e-3, 0.05, 320),
        "mrpc": (30, 8e-4, 1.2e-3, 0.01, 320),
        "stsb": (20, 7e-4, 5e-4, 0.001, 128),
    }
    for task, (epochs, goft, qgoft, penalty, length) in printed.items():
        words = ["protocol=goft_icml24", f"task=glue/{task}"]
        one, two = compose_settings([*words, "method=goft"]), compose_settings([*words, "method=qgoft"])
        assert (one.train.epochs, two.train.epochs) == (epochs, epochs)
        assert (one.optim.lr, two.optim.lr, two.method.penalty) == (goft, qgoft, penalty)
        assert one.train.batch_size == 32
        assert one.train.max_length == length
        assert one.optim.head_lr == one.optim.lr
        assert (one.selection, one.eval_scheme) == ("last", "validation")
        assert one.method.lr_source == "table 5"


def test_psoft_table_10_is_transcribed():
    printed = {
        "cola": (64, 20, 6e-4),
        "stsb": (128, 20, 4e-4),
        "mrpc": (256, 30, 4e-4),
        "rte": (256, 30, 4e-4),
        "sst2": (128, 10, 2e-4),
        "qnli": (256, 5, 4e-4),
    }
    for task, (length, epochs, lr) in printed.items():
        s = compose_settings(["protocol=psoft_iclr26", f"task=glue/{task}", "method=psoft"])
        assert (s.train.max_length, s.train.epochs, s.optim.lr, s.optim.head_lr, s.optim.warmup) == (length, epochs, lr, 5e-4, 0.1)
        assert (s.eval_scheme, s.selection, s.method.variant) == ("seeded_halves", "best_validation", "r46")
        assert (s.task.primary, s.optim.warmup_rounding) == ({"cola": "matthews", "stsb": "pearson"}.get(task, "accuracy"), "down")


def test_overrides_precede_the_recipe():
    s = compose_settings(["task=glue/rte", "method=qgoft", "optim.lr=0.5", "method.penalty=0.25", "train.epochs=2", "train.max_steps=null"])
    assert (s.optim.lr, s.method.penalty, s.train.epochs, s.train.max_steps) == (0.5, 0.25, 2.0, None)


@pytest.mark.parametrize("experiment", config_names("experiment"))
def test_experiments_compose_or_have_a_reason(experiment):
    """Hydra sweeps over products of lists; pairs of method and variant go through make."""
    item = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())["item"]
    if "rows" in item or "bench" in item:
        with pytest.raises(QgoftError, match=f"run make {item['name']}"):
            compose_settings([f"experiment={experiment}"])
    else:
        compose_settings([f"experiment={experiment}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=qgooft"], r"unknown method 'qgooft' .*; allowed are adalora, .*change METHOD"),
        (["task=glue/wnli"], r"unknown task 'glue/wnli' .*; allowed are .*glue/cola, "),
        (["protocol=paper"], r"unknown protocol 'paper'; allowed are goft_icml24, pocket"),
        (["protocol=psoft_iclr26", "task=glue/mnli"], r"does not support method .* did not run it"),
        (["protocol=goft_icml24", "method=dora"], r"does not support method dora"),
        (["selection=best"], r"selection is 'best'; allowed are last"),
        (["train.max_stepss=3"], r"unknown setting train.max_stepss \(did you mean train.max_steps"),
        (["train.max_step=4"], r"unknown setting train\.max_step \(did you mean train\.max_steps\?\); allowed are train\.epochs, "),
        (["train.lr=1"], r"unknown setting train\.lr \(did you mean optim\.lr\?\)"),
        (["nothing=1"], r"unknown setting nothing; allowed are protocol, task, model, "),
        (["METHOD=lora"], r"METHOD is a variable of make; a command has the option --method, a run the setting method="),
        (["train.max_steps=many"], r"train.max_steps is 'many' of type str; a int is needed"),
        (["train.max_steps=0"], r"allowed are 1 to"),
        (["train.max_steps=null"], r"neither train.epochs nor train.max_steps"),
        (["protocol=goft_icml24", "selection=best_validation"], r"leaves no rows for validation"),
    ],
)
def test_compose_errors_are_one_line(words, message):
    with pytest.raises(QgoftError, match=message) as caught:
        compose_settings(words)
    assert "\n" not in str(caught.value)


def leaves(node):
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child)
    else:
        yield node


@pytest.mark.parametrize("path", ["/home/josé/my data (2)/a=b#c", "it's/~x", "plain/a-b_c.d", "D:/{x}/[y],z"])
def test_paths_are_literal(path):
    found = compose_settings(["task=glue/rte", f"data.root={path}", f"model.path={path}", f"results.root={path}"])
    assert (found.data.root, found.model.path, found.results.root) == (path, path, path)
    assert compose_settings(["data.root=null", "results.root='a b'"]).results.root == "a b", "words in quotes are Hydra's"


def test_recipes_contain_numbers():
    """Plain YAML readers parse 1e-3 as text and 1.0e-3 as a number."""
    for path in CONFIGS.rglob("*.yaml"):
        for value in leaves(yaml.safe_load(path.read_text())):
            assert not (isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)), f"{path.name}: {value}"


def test_goft_tables_8_and_9_are_transcribed():
    for method, penalty in (("goft", 0.0), ("qgoft", 0.001)):
        s = compose_settings(["protocol=goft_icml24", "task=squad/v1", f"method={method}"])
        assert (s.train.epochs, s.train.batch_size, s.optim.lr, s.method.penalty) == (10, 32, 8e-4, penalty)
        assert (s.train.max_length, s.task.options["stride"], s.optim.warmup) == (384, 128, 1000)
        assert s.method.lr_source == "table 8"
        s = compose_settings(["protocol=goft_icml24", "task=vtab/svhn", f"method={method}"])
        assert (s.train.epochs, s.train.batch_size, s.optim.lr, s.optim.weight_decay, s.method.penalty) == (100, 64, 1e-3, 1e-4, penalty)
        assert (s.train.drop_path, s.train.drop_last, s.optim.min_lr, s.optim.schedule) == (0.1, True, 1e-5, "cosine")
        assert (s.method.targets, s.eval_scheme, s.selection, s.method.lr_source) == ("query_value", "whole", "last", "table 9")
        assert s.model.hub == "google/vit-base-patch16-224-in21k"


def test_copied_baselines_use_their_own_settings():
    """AdaLoRA's lora_alpha of 32 over a starting rank of 3; FacT's scale by task, its layers, and no gradient clipping."""
    adalora = compose_settings(["protocol=goft_icml24", "task=glue/rte", "method=adalora"])
    assert 3 * adalora.method.options["scale"] == pytest.approx(32)
    assert adalora.method.options["orthogonal_weight"] == 0.3
    for method, task, scale in (("fact_tt", "svhn", 100), ("fact_tt", "resisc45", 0.1), ("fact_tk", "resisc45", 10)):
        fact = compose_settings(["protocol=goft_icml24", f"task=vtab/{task}", f"method={method}"])
        assert (fact.method.options["scale"], fact.method.targets, fact.optim.max_grad_norm) == (scale, "all_linear", None)
    own = compose_settings(["task=vtab/svhn", "method=fact_tt"])
    assert (own.method.options["scale"], own.optim.max_grad_norm) == (1.0, 1.0)


def test_psoft_table_11_is_transcribed():
    s = compose_settings(["protocol=psoft_iclr26", "task=vtab/dtd", "method=psoft"])
    assert (s.train.epochs, s.train.batch_size, s.optim.weight_decay, s.optim.head_lr) == (50, 64, 1e-3, 5e-3)
    assert (s.optim.schedule, s.optim.warmup, s.optim.warmup_rounding, s.train.hidden_dropout) == ("cosine", 0.1, "down", None)
    assert (s.task.options["image"], s.method.options["dropout"]) == ("vit_processor", 0.1), "the adapter's dropout"
    assert (s.eval_scheme, s.selection, s.method.targets) == ("test", "best_validation", "all_linear")
    assert s.optim.lr in (5e-4, 1e-3, 5e-3)


@pytest.mark.parametrize(
    ("task", "variant", "rate", "source"),
    [
        ("math/gsm8k", "r352", 2e-4, "table 12"),
        ("math/gsm8k", "r168", 4e-4, "table 12"),
        ("math/gsm8k", "r72", 2e-4, "table 12, the learning rate of r352"),
        ("commonsense/piqa", "r424", 1e-4, "table 14"),
        ("commonsense/piqa", "r194", 4e-4, "table 14"),
        ("commonsense/piqa", "r64", 1e-4, "table 14, the learning rate of r424"),
    ],
)
def test_variant_learning_rate_or_its_source(task, variant, rate, source):
    """PSOFT, tables 12 and 14."""
    s = compose_settings(["protocol=psoft_iclr26", f"task={task}", "method=psoft", f"method.variant={variant}"])
    assert (s.optim.lr, s.optim.head_lr, s.method.lr_source) == (rate, rate, source)


def test_psoft_table_4_variants():
    for method, variant in (("lora", "r2"), ("oft_paper", "b4")):
        for protocol in ("goft_icml24", "small"):
            assert compose_settings([f"protocol={protocol}", "task=squad/v1", f"method={method}"]).method.variant == variant
    for method, variant in (("lora", "r8"), ("oft_paper", "b8")):
        assert compose_settings(["protocol=goft_icml24", "task=vtab/dtd", f"method={method}"]).method.variant == variant


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=vtab/dtd", "eval_scheme=halves", "selection=last"], "suite vtab has test, whole"),
        (["task=glue/rte", "eval_scheme=whole", "selection=last"], "suite glue has test, halves, seeded_halves, validation"),
        (["task=vtab/dtd", "eval_scheme=whole"], "leaves no rows for validation"),
    ],
)
def test_eval_scheme_unsupported_by_suite(words, message):
    with pytest.raises(QgoftError, match=message):
        compose_settings(words)


def test_eval_batch_size_in_key_if_sampled():
    """Every batch has its own seed, so other batches sample other answers. The shared training is the same."""
    words = ["task=instruct/vicuna", "method=goft"]
    for protocol, counts in (("goft_icml24", True), ("pocket", False)):
        one, two = (compose_settings([f"protocol={protocol}", *words, f"train.eval_batch_size={size}"]) for size in (8, 128))
        assert (settings_in_key(one) != settings_in_key(two)) is counts
        assert settings_of_training(one) == settings_of_training(two)
