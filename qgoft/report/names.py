"""Names of methods as papers print them. Tables hold labels such as `lora@r8, qkv`, which CSV files keep; everything else shows names."""

import re

# Method -> its name. One that is missing here is shown under its key.
METHODS = {
    "full": "Full FT",
    "linear": "Linear probe",
    "base": "Pretrained",
    "bitfit": "BitFit",
    "h_adapter": "H-Adapter",
    "p_adapter": "P-Adapter",
    "lora": "LoRA",
    "dora": "DoRA",
    "pissa": "PiSSA",
    "adalora": "AdaLoRA",
    "lora_xs": "LoRA-XS",
    "svft_p": "SVFT-P",
    "fact_tt": "FacT-TT",
    "fact_tk": "FacT-TK",
    "oft": "OFT",
    "oft_paper": "OFT",
    "oft_v2": "OFTv2",
    "boft": "BOFT",
    "hra": "HRA",
    "psoft": "PSOFT",
    "goft": "GOFT",
    "goft_star": "GOFT*",
    "qgoft": "qGOFT",
    "goft_v2": "GOFTv2",
    "qgoft_v2": "qGOFTv2",
}
# Tuners of peft without an entry of their own (qgoft/config/peft_types.py).
PEFT = {
    "adamss": "AdaMSS",
    "beft": "BEFT",
    "c3a": "C3A",
    "deft": "DEFT",
    "delora": "DeLoRA",
    "fourierft": "FourierFT",
    "frod": "FRoD",
    "glora": "GLoRA",
    "gralora": "GraLoRA",
    "hira": "HiRA",
    "ia3": "(IA)^3",
    "lily": "Lily",
    "loha": "LoHa",
    "lokr": "LoKr",
    "miss": "MiSS",
    "osf": "OSF",
    "peanut": "PEANuT",
    "pvera": "PVeRA",
    "randlora": "RandLoRA",
    "road": "RoAd",
    "shira": "SHiRA",
    "supertuning": "Supertuning",
    "tinylora": "TinyLoRA",
    "unilora": "UniLoRA",
    "vblora": "VB-LoRA",
    "vera": "VeRA",
    "waveft": "WaveFT",
}
# Addition to the name of a method.
VARIANTS = {"oft_paper": "full blocks"}
# Modifiers of variants whose own spelling says too little.
MODIFIERS = {r"lambda(\d+)": r"λ=\1", r"svd(\d+)": r"\1 SVD iterations", r"t(\d+)": r"\1 terms", "pissa": "PiSSA", "borth": "orthogonal B"}
# Target sets (configs/model) -> the letters of PSOFT's tables.
TARGETS = {"qkv": "Q, K, V", "qv": "Q, V", "qkvud": "Q, K, V, U, D", "all_linear": "all linear layers"}
_LABEL = re.compile(
    r"(?P<before>\s*(?:random \+ |published |minus )?)(?P<method>[a-z]\w*)(?P<variant>@[\w-]+)?(?P<sizes>(?: [a-z]=\d+)*)(?![\w@-])"
)


def display_name(method: str, variant: str = "") -> str:
    """Return the name of a method and variant: LoRA r=8, OFT (full blocks, b=8), PSOFT r=64 (strict)."""
    sizes, *modifiers = variant.split("-") if variant and variant != method else [""]
    if sizes == method:  # qgoft-butterfly
        sizes = ""
    sizes = ", ".join(f"{letter}={number}" for letter, number in re.findall(r"([a-z]+)(\d+)", sizes))
    shown = [_modifier(modifier) for modifier in modifiers]
    name = METHODS.get(method) or PEFT.get(method, method)
    if method in VARIANTS:
        shown, sizes = [VARIANTS[method], *([sizes] if sizes else []), *shown], ""
    return " ".join([name, *([sizes] if sizes else []), *([f"({', '.join(shown)})"] if shown else [])])


def _modifier(text: str) -> str:
    for pattern, shown in MODIFIERS.items():
        if found := re.fullmatch(pattern, text):
            return found.expand(shown)
    return text


def display_label(label: str) -> str:
    """Return the label of a row or of a heading with the name of its method: `random + LoRA r=8 *`. Other text is unchanged."""
    found = _LABEL.match(label)
    if found is None or found["method"] not in METHODS | PEFT:
        return label
    variant = (found["variant"] or "")[1:] or found["sizes"].replace(" ", "").replace("=", "")
    rest = re.sub(
        r", (\w+)(?=,| |$)", lambda match: f" ({TARGETS[match[1]]})" if match[1] in TARGETS else match[0], label[found.end() :], count=1
    )
    return f"{found['before']}{display_name(found['method'], variant)}{rest}"


def latex_name(text: str) -> str:
    """Return an escaped name with its symbols as mathematics: GOFT$^*$, LoRA $r{=}8$."""
    number = r"(-?[\d.]+(?:e-?\d+)?)"
    text = re.sub(rf"\$\\lambda\$={number}", r"$\\lambda{=}\1$", text)
    text = re.sub(rf"(?<![\w\\$])([a-z])={number}", r"$\1{=}\2$", text)
    return re.sub(r"GOFT\*", "GOFT$^*$", text)
