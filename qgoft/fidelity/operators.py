"""Operators and adapters of the authors' code, compared on random weights."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
from torch import Tensor, nn

from qgoft.fidelity.checkout import Finding, compare, names_from
from qgoft.methods.registry import REGISTRY, MethodContext, parse_variant
from qgoft.tuners import GoftConfig

# Output and input width of a layer, rank, and rows.
N, D, R, ROWS = 40, 24, 6, 8


def layer(n: int = N, d: int = D) -> nn.Linear:
    """Return a linear layer with well-separated singular values, so that float32 decompositions agree."""
    torch.manual_seed(0)
    made = nn.Linear(d, n)
    u, _, vh = torch.linalg.svd(made.weight.data.double(), full_matrices=False)
    made.weight.data = (u @ torch.diag(torch.logspace(0, -2, min(n, d), dtype=torch.float64)) @ vh).float()
    return made


def adapted(name: str, variant: str, model: nn.Module, targets: list[str], **options: Any) -> Any:
    """Apply a method of this project to some modules of a model."""
    method, modules = REGISTRY[name], dict(model.named_modules())
    shapes = [shape for target in targets if (shape := method.shape_of(modules[target])) is not None]
    assert method.config is not None
    config = method.config(parse_variant(method, variant), MethodContext(shapes, 100, options))
    config.target_modules = set(targets)
    return peft.get_peft_model(model, config).eval()


@torch.no_grad()
def check_givens(directory: Path, release: str) -> Iterator[Finding]:
    space = {"BaseTunerLayer": object, "warnings": __import__("warnings"), "transpose": lambda weight, flip: weight.T if flip else weight}
    theirs = names_from(directory / "tuners" / "givens" / "layer.py", ["Linear"], GivensLayer=object, **space).Linear
    first = release == "first"
    for variant, strict, plain in (("goft", True, True), ("goft_star", True, False), ("qgoft", False, False)):
        if variant == "goft_star" and not first:
            continue  # not part of this project
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
def check_fact(directory: Path) -> Iterator[Finding]:
    for form, r in (("tt", 4), ("tk", 4)):
        source = names_from(directory / "FacT" / f"fact_{form}.py", ["fact_forward_mlp"])
        base = nn.ModuleDict({"fc1": nn.Linear(D, 4 * D), "fc2": nn.Linear(4 * D, D)})
        base.forward = lambda x: x
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
def check_adapters(directory: Path) -> Iterator[Finding]:
    from transformers.activations import ACT2FN
    from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Config, DebertaV2Output, DebertaV2SelfOutput

    models = directory / "NLU" / "src" / "transformers" / "models"
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
def check_lora_xs(directory: Path) -> Iterator[Finding]:
    from sklearn.decomposition import TruncatedSVD

    names = ["run_svd", "get_linear_rec_svd"]
    source = names_from(directory / "utils" / "svd_utils.py", names, TruncatedSVD=TruncatedSVD, Tuple=tuple)
    own = adapted("lora_xs", f"r{R}", nn.Sequential(layer()), ["0"]).base_model.model[0]
    weight = own.base_layer.weight.data.double()
    _, encoder, decoder = source.get_linear_rec_svd(weight.T.numpy(), R, 10, 42)
    theirs_a, theirs_b = torch.tensor(encoder).T, torch.tensor(decoder).T
    ours_a, ours_b = own.right["default"].T.double(), own.left["default"].double()
    signs_a, signs_b = ((one * other).sum(axis).sign() for one, other, axis in ((theirs_a, ours_a, 1), (theirs_b, ours_b, 0)))
    yield compare("LoRA-XS, A (singular values at the input)", ours_a, signs_a[:, None] * theirs_a)
    yield compare("LoRA-XS, B", ours_b, signs_b * theirs_b)


@torch.no_grad()
def check_svft(directory: Path) -> Iterator[Finding]:
    class Dense:
        """Stand-in for torch_sparse.SparseTensor."""

        def __init__(self, row: Tensor, col: Tensor, value: Tensor):
            self.dense = torch.zeros(int(row.max()) + 1, int(col.max()) + 1).index_put((row, col), value)

        def __add__(self, other: "Dense") -> Tensor:
            return self.dense + other.dense

    source = names_from(directory / "svft" / "svft_layers.py", ["SVFTLayer"], SparseTensor=Dense)
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
def check_psoft(directory: Path) -> Iterator[Finding]:
    source = names_from(directory / "baselines" / "psoft" / "psoft_layers.py", ["PSOFTLayer"])
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
