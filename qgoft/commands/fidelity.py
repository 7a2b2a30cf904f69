"""Run the authors' own code next to this project's, from checkouts that you name, and print the agreement.

    python scripts/fidelity.py --peft-givens DIR --metamath DIR ...

Functions and classes are taken from the checkouts by name, without their imports, and run on random weights. docs/fidelity.md lists the repositories,
the commits used here and the figures. Nothing of their code is in this repository.
"""

import argparse
import ast
import contextlib
import gzip
import io
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
from datasets import Dataset
from torch import Tensor, nn

import qgoft  # noqa: F401  (registers the tuners)
from qgoft.cli import Parser
from qgoft.errors import QgoftError
from qgoft.methods.registry import REGISTRY, Context, parse_variant
from qgoft.report.table import Table, terminal_width
from qgoft.tasks.decoder import answer_parsing as answers
from qgoft.tasks.decoder import published_rules
from qgoft.tuners import GoftConfig

N, D, R, ROWS = 40, 24, 6, 8


class Finding(NamedTuple):
    """One comparison: its subject, and the largest relative difference or the number of verdicts that differ."""

    subject: str
    difference: str
    is_same: bool


def names_from(path: Path, names: list[str], **namespace: Any) -> SimpleNamespace:
    """Execute only the named functions and classes of a file, in a namespace that replaces its imports.

    Raises:
        QgoftError: the file is missing or lacks one of the names.
    """
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise QgoftError(f"{path} cannot be read ({error}); name a checkout at the commit of docs/fidelity.md") from error
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    missing = set(names) - {node.name for node in found}
    if missing:
        raise QgoftError(f"{path} has no {', '.join(sorted(missing))}; name a checkout at the commit of docs/fidelity.md")
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "math": math, "np": np, "re": re, **namespace}
    exec(compile(ast.Module(found, []), str(path), "exec"), space)  # the user named this code to be run
    return SimpleNamespace(**{name: space[name] for name in names}, space=space)


def compare(subject: str, ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> Finding:
    gap = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return Finding(subject, f"{gap:.1e}", gap <= bound)


def layer(n: int = N, d: int = D) -> nn.Linear:
    """A linear layer with well-separated singular values, so that float32 decompositions agree."""
    torch.manual_seed(0)
    made = nn.Linear(d, n)
    u, _, vh = torch.linalg.svd(made.weight.data.double(), full_matrices=False)
    made.weight.data = (u @ torch.diag(torch.logspace(0, -2, min(n, d), dtype=torch.float64)) @ vh).float()
    return made


def adapted(name: str, variant: str, model: nn.Module, targets: list[str], **options: Any) -> Any:
    """Put a method of this project on some modules of a model."""
    method, modules = REGISTRY[name], dict(model.named_modules())
    shapes = [shape for target in targets if (shape := method.shape_of(modules[target])) is not None]
    assert method.config is not None
    config = method.config(parse_variant(method, variant), Context(shapes, 100, options))
    config.target_modules = set(targets)
    return peft.get_peft_model(model, config).eval()


@torch.no_grad()
def check_givens(folder: Path, release: str) -> Iterator[Finding]:
    space = {"BaseTunerLayer": object, "warnings": __import__("warnings"), "transpose": lambda weight, flip: weight.T if flip else weight}
    theirs = names_from(folder / "tuners" / "givens" / "layer.py", ["Linear"], GivensLayer=object, **space).Linear
    first = release == "first"
    for variant, strict, plain in (("goft", True, True), ("goft_star", True, False), ("qgoft", False, False)):
        if variant == "goft_star" and not first:
            continue  # has no counterpart here
        for d in (7, 8, 12, 13, 16, 96, 100, 768) if first else (8, 12, 16, 96, 100, 768):
            base = layer(N, d)
            config = GoftConfig(variant=variant if first else f"{variant}_v2", target_modules=["0"], init_weights=False)
            ours = peft.get_peft_model(nn.Sequential(base), config).eval()
            own = ours.base_model.model[0]
            part = SimpleNamespace(
                in_features=d, strict_oft={"a": strict}, no_scaling={"a": plain}, active_adapters=["a"], disable_adapters=False, merged=False,
                merged_adapters=[], fan_in_fan_out=False, get_base_layer=lambda base=base: base, weight=base.weight, bias=base.bias,
                givens_hard={} if not strict else {"a": own.goft_theta["default"]},
                givens_soft={} if strict else {"a": own.goft_blocks["default"]},
                givens_scaler={"a": own.goft_scale["default"]} if strict and not plain else {},
            )  # fmt: skip
            x = torch.randn(ROWS, d)
            part._linear = lambda x, base=base: base(x)
            yield compare(f"{release} release: {variant}, width {d}, output", own(x), theirs.forward(part, x), 1e-6)
            if first:
                merged = theirs.get_delta_weight(part, "a") @ base.weight.data.T
                yield compare(
                    f"{release} release: {variant}, width {d}, merged", own._merge_into_weight("default", reverse=False), merged.T, 1e-6
                )


@torch.no_grad()
def check_fact(folder: Path) -> Iterator[Finding]:
    for form, r in (("tt", 4), ("tk", 4)):
        source = names_from(folder / "FacT" / f"fact_{form}.py", ["fact_forward_mlp"])
        base = nn.ModuleDict({"fc1": nn.Linear(D, 4 * D), "fc2": nn.Linear(4 * D, D)})
        base.forward = lambda x: x  # type: ignore[assignment]
        ours = adapted(f"fact_{form}", f"r{r}", base, ["fc1", "fc2"], scale=1.5)
        tuner, layers = ours.base_model, ours.base_model.model
        shared = [tuner.fact_u, tuner.fact_v, *([tuner.fact_c] if form == "tk" else [])]
        for store in (*shared, *(one.fact_core for one in layers.values())):
            store["default"].data.normal_()
        u, v = (store["default"].data for store in (tuner.fact_u, tuner.fact_v))
        first, second = (layers[name] for name in ("fc1", "fc2"))
        vit = SimpleNamespace(FacTu=lambda x, u=u: x @ u, FacTv=lambda x, v=v: x @ v.T)
        same = lambda x: x  # noqa: E731
        mlp = SimpleNamespace(dim=r, s=1.5, dp=same, run_action=same, drop=same, idx=0, fc1=first.base_layer, fc2=second.base_layer)
        cores = [one.fact_core["default"].data for one in (first, second)]
        if form == "tk":
            vit.FacTc = tuner.fact_c["default"].data
            vit.FacTp = torch.cat([core.reshape(-1, r) for core in cores]).T
        else:
            # Weights of linear layers: [4 r, r] and [r, 4 r].
            fc1, fc2 = cores[0][0].permute(0, 2, 1).reshape(4 * r, r), cores[1][:, 0].permute(2, 0, 1).reshape(r, 4 * r)
            mlp.fc1_FacTs, mlp.fc2_FacTs = (lambda x, w=weight: x @ w.T for weight in (fc1, fc2))
        source.space["vit"] = vit
        x = torch.randn(2, 3, D)
        yield compare(f"FacT-{form.upper()}, feed-forward", second(first(x)), source.fact_forward_mlp(mlp, x))


@torch.no_grad()
def check_adapters(folder: Path) -> Iterator[Finding]:
    from transformers.activations import ACT2FN
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Config, DebertaV2Output, DebertaV2SelfOutput

    models = folder / "NLU" / "src" / "transformers" / "models"
    adapter = names_from(models / "adapter.py", ["Adapter"], get_activation=ACT2FN.__getitem__).Adapter
    theirs = names_from(
        models / "deberta_v2" / "modeling_deberta_v2.py",
        ["DebertaV2SelfOutput", "DebertaV2Output"],
        Adapter=adapter,
        StableDropout=nn.Dropout,
        LayerNorm=nn.LayerNorm,
    )
    for name, kind, blocks in (
        ("h_adapter", "houlsby", ((DebertaV2SelfOutput, theirs.DebertaV2SelfOutput), (DebertaV2Output, theirs.DebertaV2Output))),
        ("p_adapter", "pfeiffer", ((DebertaV2Output, theirs.DebertaV2Output),)),
    ):
        for own_class, their_class in blocks:
            config = DebertaV2Config(hidden_size=D, intermediate_size=N, num_attention_heads=2)
            config.apply_lora, config.apply_adapter, config.adapter_type, config.adapter_size = False, True, kind, R
            model = adapted(name, f"r{R}", nn.Sequential(own_class(config)), ["0"])
            own, block = model.base_model.model[0], their_class(config).eval()
            block.dense.load_state_dict(own.base_layer.dense.state_dict())
            pairs = (("adapter_A", "bottleneck_down"), ("adapter_B", "bottleneck_up"))
            for their_name, our_name in pairs:
                for store, value in ((f"{our_name}", "weight"), (f"{our_name}_bias", "bias")):
                    getattr(own, store)["default"].data.normal_(0, 0.3)
                    getattr(getattr(block.adapter, their_name), value).data.copy_(getattr(own, store)["default"].data)
            h, x = torch.randn(ROWS, block.dense.in_features), torch.randn(ROWS, D)
            yield compare(f"{name}, {own_class.__name__}", own(h, x), block(h, x))


@torch.no_grad()
def check_lora_xs(folder: Path) -> Iterator[Finding]:
    from sklearn.decomposition import TruncatedSVD

    names = ["run_svd", "get_linear_rec_svd"]
    source = names_from(folder / "utils" / "svd_utils.py", names, TruncatedSVD=TruncatedSVD, Tuple=tuple)
    own = adapted("lora_xs", f"r{R}", nn.Sequential(layer()), ["0"]).base_model.model[0]
    weight = own.base_layer.weight.data.double()
    _, encoder, decoder = source.get_linear_rec_svd(weight.T.numpy(), R, 10, 42)
    theirs_a, theirs_b = torch.tensor(encoder).T, torch.tensor(decoder).T
    ours_a, ours_b = own.right["default"].T.double(), own.left["default"].double()
    signs_a, signs_b = ((one * other).sum(axis).sign() for one, other, axis in ((theirs_a, ours_a, 1), (theirs_b, ours_b, 0)))
    yield compare("LoRA-XS, A (singular values at the input)", ours_a, signs_a[:, None] * theirs_a)
    yield compare("LoRA-XS, B", ours_b, signs_b * theirs_b)


@torch.no_grad()
def check_svft(folder: Path) -> Iterator[Finding]:
    class Dense:
        """Stand-in for torch_sparse.SparseTensor."""

        def __init__(self, row: Tensor, col: Tensor, value: Tensor):
            self.dense = torch.zeros(int(row.max()) + 1, int(col.max()) + 1).index_put((row, col), value)

        def __add__(self, other: "Dense") -> Tensor:
            return self.dense + other.dense

    source = names_from(folder / "svft" / "svft_layers.py", ["SVFTLayer"], SparseTensor=Dense)
    own = adapted("svft_p", "svft_p", nn.Sequential(layer()), ["0"]).base_model.model[0]
    base = own.base_layer
    u, s, vh = torch.linalg.svd(base.weight.data, full_matrices=False)
    theirs = source.SVFTLayer(u, s, vh, off_diag=0)
    own.svft_m["default"].data.normal_()
    own.svft_gate["default"].data.fill_(0.7)
    signs = (u * own.left["default"]).sum(0).sign() * (vh * own.right["default"].T).sum(1).sign()
    theirs.s.data.copy_(signs * own.svft_m["default"].data)
    theirs.gate.data.fill_(0.7)
    x = torch.randn(ROWS, D)
    yield compare("SVFT_P", own(x), theirs(x) + base.bias)


@torch.no_grad()
def check_psoft(folder: Path) -> Iterator[Finding]:
    source = names_from(folder / "baselines" / "psoft" / "psoft_layers.py", ["PSOFTLayer"])
    for variant, terms in ((f"r{R}", 5), (f"r{R}-t5", 3), (f"r{R}-exact", None)):
        own = adapted("psoft", variant, nn.Sequential(layer()), ["0"]).base_model.model[0].psoft_R["default"]
        theirs = source.PSOFTLayer(R, use_cayley_neumann=terms is not None, num_cayley_neumann_terms=terms or 5)
        own.weight.data.normal_(0, 0.1)
        for ours, other in ((own.vector_a, theirs.mag_vector_a), (own.vector_b, theirs.mag_vector_b)):
            ours.data.normal_(1, 0.2)
            other.data.copy_(ours.data)
        skew = torch.zeros(R, R)
        skew[own.rows, own.cols] = own.weight.data
        lower = theirs.indices_lower
        theirs.a_params.data.copy_(-(skew - skew.T)[lower[0], lower[1]])  # K = -Q
        x = torch.randn(ROWS, R)
        yield compare(
            f"PSOFT, {variant} (its own layer with {'the exact map' if terms is None else f'K = {terms}'})", own(x), theirs(x), 1e-6
        )


def verdicts(subject: str, pairs: list[tuple[Any, Any]]) -> Finding:
    """Pairs of our verdict and theirs."""
    differing = sum(ours != theirs for ours, theirs in pairs)
    return Finding(subject, f"{differing} of {len(pairs):,} differ", differing == 0)


ATOMS = (
    r"1|2|0.5|.5|x|\frac12|\frac{1}{2}|\dfrac{1}{2}|\tfrac1{2}|\sqrt3|\sqrt{3}|\sqrt[3]{2}|k=3|x = 3|xy=3|\text{ cm}|5\text{ cm}|5\text{cm}|"
    r"\text{ a}\text{ b}|50\%|50%|$5|\$5|1/2|x/2|01/2|-1/2|\pi/4|1,000|1000|10^\circ|10^{\circ}|\left(1,2\right)|(1,2)|"
    r"\begin{pmatrix}1\\2\end{pmatrix}|\frac|\frac1|\sqrt|a=b=c|1.0|01|3/1|3|$3$|3.|\text{even}|even|\frac{72}1|\frac 12| 3|2\!3|1 / 2|{.5}|a .5|-.5"
).split("|")


def formula_pairs(count: int = 20_000) -> list[tuple[str, str]]:
    """Every pair of the atoms, and pairs of texts made of them, one often a respelling of the other."""
    rng = np.random.default_rng(0)
    pairs = [(one, other) for one in ATOMS for other in ATOMS]
    while len(pairs) < count:
        one = "".join(rng.choice(ATOMS, rng.integers(1, 4)))
        spelled = [one, one.replace(" ", ""), one.replace("dfrac", "frac"), one + str(rng.choice(ATOMS)), str(rng.choice(ATOMS))]
        pairs.append((one, spelled[rng.integers(len(spelled))]))
    return pairs


def data_pairs(folder: Path) -> list[tuple[str, str]]:
    """Pairs of real results below a directory of benchmark data (docs/data.md): the choices of one MMLU question, the answer of a word problem
    and the result that its worked solution ends with, and the same of GSM8K.

    Raises:
        QgoftError: the directory has none of them.
    """
    pairs: list[tuple[str, str]] = []
    if (path := folder / "mmlu" / "test.parquet").is_file():
        for row in Dataset.from_parquet(str(path)):
            pairs += [(one, other) for one in row["choices"] for other in (*row["choices"], one.replace(" ", ""))]
    texts = []
    for path in sorted((folder / "math_word_problems").glob("*/test.jsonl.gz")):
        lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        texts += [(str(row["answer"]), row["output"].rpartition("The answer is ")[2].strip()) for row in lines]
    if (path := folder / "gsm8k" / "test.parquet").is_file():
        texts += [
            (row["answer"].rpartition("#### ")[2], row["answer"].rpartition("<<")[2].partition(">>")[0])
            for row in Dataset.from_parquet(str(path))
        ]
    for answer, found in texts:
        pairs += [(answer, found), (f"${answer}$", found), (f"\\frac{{{answer}}}{{1}}", answer), (answer, answer.removesuffix(".0"))]
    if not pairs:
        raise QgoftError(f"--data {folder} has neither mmlu, math_word_problems nor gsm8k; name a directory as in docs/data.md")
    return pairs


DATA_PAIRS: list[tuple[str, str]] = []  # of --data


def check_equivalence(path: Path, rule: str) -> Iterator[Finding]:
    prefix = "_" if rule == "hendrycks" else ""
    helpers = [f"{prefix}{name}" for name in ("fix_fracs", "fix_a_slash_b", "remove_right_units", "fix_sqrt", "strip_string")]
    source = names_from(path, ["is_equiv", *helpers])
    found, own = [], []
    for one, other in [*formula_pairs(), *DATA_PAIRS]:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = bool(source.is_equiv(one, other))
        found.append((published_rules.is_equivalent(one, other, rule=rule), theirs))
        own.append((answers.same_formula(one, other), theirs))
    yield verdicts(f"{rule}: is_equiv", found)
    accepts, refuses = (sum(ours is verdict and theirs is not verdict for ours, theirs in own) for verdict in (True, False))
    yield Finding(f"{rule}: math_equivalent, our own metric", f"accepts {accepts:,}, refuses {refuses:,} that it does not", True)


def check_metamath(folder: Path) -> Iterator[Finding]:
    yield from check_equivalence(folder / "util.py", "metamath")
    numbers = names_from(folder / "eval_gsm8k.py", ["is_number", "extract_answer_number"], Fraction=Fraction)
    rng = np.random.default_rng(0)
    pieces = [
        "-",
        "+",
        "$",
        "3",
        "18",
        "1,234",
        ".",
        ".5",
        "/",
        "0",
        " ",
        "7/2",
        "3.5",
        "%",
        "x",
        "\n",
        "The answer is: ",
        "The answer is ",
    ]
    pairs: list[tuple[Any, Any]] = []
    for _ in range(5000):
        text = "so The answer is: " * int(rng.integers(2)) + "".join(rng.choice(pieces, rng.integers(1, 6)))
        with contextlib.suppress(ZeroDivisionError):  # on which the code itself ends
            pairs.append((published_rules.read_metamath_number(text), numbers.extract_answer_number(text)))
    yield verdicts("metamath: GSM8K's number", pairs)
    read: list[str] = []
    util = SimpleNamespace(is_equiv=lambda found, answer: read.append(found))
    formulas = names_from(folder / "eval_math.py", ["process_results", "remove_boxed"], util=util, invalid_outputs=[])
    boxes = names_from(folder / "util.py", ["last_boxed_only_string"])
    pairs, references = [], []
    for one, other in formula_pairs(5000):
        text = f"{one}The answer is: {other}.\nmore" if len(one) % 2 else f"{one}{other}"
        read.clear()
        formulas.process_results("", text, "")
        pairs.append((published_rules.read_metamath_formula(text), read[0] if read else None))
        solution = f"so \\boxed{{{one}}}, \\fbox{{2}} or \\boxed{{{other}" + "}" * (len(other) % 3)
        references.append((published_rules.read_boxed_reference(solution), formulas.remove_boxed(boxes.last_boxed_only_string(solution))))
    yield verdicts("metamath: MATH's result", pairs)
    yield verdicts("metamath: MATH's reference", references)


def check_llm_adapters(folder: Path) -> Iterator[Finding]:
    source = names_from(folder / "commonsense_evaluate.py", ["extract_answer"])
    labels = {
        "boolq": ["true", "false"], "piqa": ["solution1", "solution2"], "winogrande": ["option1", "option2"],
        "hellaswag": [f"ending{i}" for i in range(1, 5)], "social_i_qa": [f"answer{i}" for i in range(1, 4)],
        "openbookqa": [f"answer{i}" for i in range(1, 5)], "ARC-Easy": [f"answer{i}" for i in range(1, 6)],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for dataset, own in labels.items():
        pieces = [*own, *(label.upper() for label in own), "answer5", "answer10", "untrue", " ", "the correct answer is "]
        texts = ["".join(rng.choice(pieces, rng.integers(1, 5))) for _ in range(1000)]
        args = SimpleNamespace(dataset=dataset)
        found = [(published_rules.read_first_label(text, own) or "", source.extract_answer(args, text)) for text in texts]
        yield verdicts(f"LLM-Adapters: {dataset}", found)


# Option -> variable of make, repository, and the check.
CHECKS: dict[str, tuple[str, Callable[[Path], Iterator[Finding]]]] = {
    "peft-givens": ("ArthurLeoM/peft-givens", lambda folder: check_givens(folder, "first")),
    "peft-givens-v2": ("ArthurLeoM/peft-givens", lambda folder: check_givens(folder, "second")),
    "petl-vit": ("JieShibo/PETL-ViT", check_fact),
    "adalora": ("QingruZhang/AdaLoRA", check_adapters),
    "lora-xs": ("MohammadrezaBanaei/LoRA-XS", check_lora_xs),
    "svft": ("VijayLingam95/SVFT", check_svft),
    "psoft": ("fei407/PSOFT", check_psoft),
    "metamath": ("meta-math/MetaMath", check_metamath),
    "hendrycks-math": ("hendrycks/math", lambda folder: check_equivalence(find_file(folder, "math_equivalence.py"), "hendrycks")),
    "llm-adapters": ("AGI-Edgerunners/LLM-Adapters", check_llm_adapters),
}


def find_file(folder: Path, name: str) -> Path:
    """
    Raises:
        QgoftError: the folder holds no such file.
    """
    found = sorted(folder.rglob(name))
    if not found:
        raise QgoftError(f"{folder} has no {name}; name a checkout at the commit of docs/fidelity.md")
    return found[0]


def commit_of(folder: Path) -> str:
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a checkout"


def main(words: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, (repository, _) in CHECKS.items():
        parser.add_argument(f"--{option}", type=Path, metavar="DIR", help=f"checkout of {repository}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="benchmark data (docs/data.md): more pairs of results for MATH's rules")
    given = {name.replace("_", "-"): folder for name, folder in vars(parser.parse_args(words)).items() if folder}
    if data := given.pop("data", None):
        DATA_PAIRS.extend(data_pairs(data))
    if not given:
        variables = ", ".join(f"{option.upper().replace('-', '_')}=" for option in CHECKS)
        raise QgoftError(f"no checkout is named; set one or more of {variables} (docs/fidelity.md says which commits)")
    torch.manual_seed(0)
    rows, is_same = [], True
    for option, folder in given.items():
        if not folder.is_dir():
            raise QgoftError(f"--{option} {folder}: not a directory; name a checkout of {CHECKS[option][0]}")
        for finding in CHECKS[option][1](folder):
            rows.append([CHECKS[option][0].partition("/")[2], commit_of(folder), *finding[:2], "yes" if finding.is_same else "NO"])
            is_same &= finding.is_same
    print(
        Table("fidelity", "Agreement with the authors' code", ["repository", "commit", "compared", "difference", "agrees"], rows).terminal(
            terminal_width()
        )
    )
    return 0 if is_same else 1
