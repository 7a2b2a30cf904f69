"""The native backend: products and gradients against the reference, for every instruction set, and what happens without a library."""

import ctypes
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from qgoft.ops import givens
from qgoft.ops.givens import dispatch, native
from qgoft.ops.givens.native import build

WIDTHS = [*range(2, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 384, 768, 1000]
ISAS = (0, 1, 2)  # baseline, AVX2, AVX-512; more than the processor has counts as the best it has


WITHOUT_LIBRARY = ("test_without_compiler_uses_trees", "test_unwritable_cache_uses_trees", "test_installation_without_compiler")


@pytest.fixture(autouse=True)
def library(request):
    if request.node.originalname in WITHOUT_LIBRARY:
        return None
    try:
        return native.load()
    except native.NotAvailable as reason:
        pytest.skip(f"{reason}; {WITHOUT_LIBRARY[0]} runs")


def case(d, rows=21, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.eye(2) + 0.3 * torch.randn(d - 1, 2, 2, generator=generator)
    x, g = (torch.randn(rows, d, generator=generator).to(dtype) for _ in range(2))
    return x, g, blocks


def exact(x, g, blocks, *, transpose):
    """Return y = R x or R^T x, and the gradients of x and the blocks for the gradient g of y, in float64."""
    blocks, x = blocks.double().requires_grad_(), x.double().requires_grad_()
    matrix = givens.reference_matrix(blocks, x.shape[1])
    y = x @ (matrix if transpose else matrix.T)
    return y.detach(), *torch.autograd.grad(y, (x, blocks), g.double())


def assert_near(found, expected, tolerance=2e-6):
    assert (found.double() - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("d", WIDTHS)
def test_kernels_equal_reference(d, isa):
    x, g, blocks = case(d)
    y, grad_x, grad_blocks = exact(x, g, blocks, transpose=False)
    assert_near(native.forward(x, blocks, isa=isa), y)
    ours, ours_x = native.backward(x, g, blocks, overwrite=False, need_input=True, isa=isa)
    assert_near(ours_x, grad_x)
    assert_near(ours, grad_blocks, 5e-6)
    y, grad_x, grad_blocks = exact(x, g, blocks, transpose=True)
    assert_near(native.transpose(x, blocks, isa=isa), y)
    ours, ours_x = native.backward(g, x, blocks, overwrite=False, need_input=True, transpose=True, isa=isa)
    assert_near(ours_x, grad_x)
    assert_near(ours, grad_blocks, 5e-6)


@pytest.mark.parametrize("d", [33, 768])
def test_bits_depend_on_neither_set_nor_threads(d):
    x, g, blocks = case(d, rows=1000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for isa in ISAS:
                pair = native.backward(x, g, blocks, overwrite=False, need_input=True, isa=isa)
                results.append((native.forward(x, blocks, isa=isa), native.transpose(x, blocks, isa=isa), *pair))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


@pytest.mark.parametrize("d", [2, 33, 96, 768])
def test_bfloat16_rows_are_rounded_once(d):
    x, _, blocks = case(d, dtype=torch.bfloat16)
    assert torch.equal(native.forward(x, blocks), native.forward(x.float(), blocks).bfloat16())
    assert torch.equal(native.transpose(x, blocks), native.transpose(x.float(), blocks).bfloat16())


@pytest.mark.parametrize("transpose", [False, True])
def test_overwrite_reuses_the_gradient(transpose):
    x, g, blocks = case(50)
    expected = native.backward(x, g, blocks, overwrite=False, need_input=True, transpose=transpose)
    replaced = x if transpose else g
    ours = native.backward(x, g, blocks, overwrite=True, need_input=True, transpose=transpose)
    assert ours[1].data_ptr() == replaced.data_ptr()
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))
    assert native.backward(*case(50)[:2], blocks, overwrite=False, need_input=False)[1] is None


def test_rows_of_any_stride():
    x, _, blocks = case(40, rows=30)
    wide = torch.randn(30, 100)
    for view in (
        wide[:, 7:47],
        wide[::3, :40],
        wide.T[:40, :30].T,
        torch.ones(40).expand(30, 40),
        torch.empty(0, 40),
        wide[:0, ::2][:, :40],
    ):
        assert torch.equal(native.forward(view, blocks), native.forward(view.contiguous(), blocks))
    shared = torch.ones(40).expand(30, 40)
    assert torch.equal(
        native.backward(x, shared, blocks, overwrite=True, need_input=True)[1], native.transpose(shared.contiguous(), blocks)
    )
    assert torch.equal(shared, torch.ones(30, 40)), "rows that share memory are not overwritten"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_stay_in_their_row(value):
    """Widths that are padded: a row with such a value must not affect the next one."""
    x, _, blocks = case(37, rows=9)
    clean = native.forward(x, blocks), native.transpose(x, blocks)
    for column in (0, 35, 36):
        broken = x.clone()
        broken[3, column] = value
        for found, expected in zip((native.forward(broken, blocks), native.transpose(broken, blocks)), clean, strict=True):
            assert not found[3].isfinite().all()
            others = [i for i in range(9) if i != 3]
            assert torch.equal(found[others], expected[others])


def test_unsupported_tensors_are_refused():
    x, g, blocks = case(8)
    for rows, grads in ((x.double(), g), (x, g[:, :4]), (x, g.bfloat16()), (x.to("meta"), g)):
        with pytest.raises(ValueError, match="native kernels take"):
            native.backward(rows, grads, blocks, overwrite=False, need_input=True)
    with pytest.raises(ValueError, match="rows of at most 67108864 values, not 67108865"):
        native.forward(torch.empty(0, native.MAX_WIDTH + 1), blocks)
    with pytest.raises(ValueError, match="native kernels take contiguous float32 blocks"):
        native.forward(x, blocks[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_use_trees(dtype):
    blocks, x = torch.eye(2).repeat(39, 1, 1), torch.randn(3, 40).to(dtype)
    factors = givens.build_factors(blocks, 40)
    assert factors.backend == "native"
    assert torch.equal(givens.apply_factors(x, factors), x)


def test_backend_of_the_environment(monkeypatch):
    x = torch.zeros(2, 3)
    assert dispatch.choose_backend(x) == "native"
    monkeypatch.setenv("QGOFT_BACKEND", "trees")
    assert dispatch.choose_backend(x) == "trees"
    monkeypatch.setenv("QGOFT_BACKEND", "fast")
    with pytest.raises(ValueError, match="QGOFT_BACKEND=fast: unknown backend; allowed are native, trees"):
        dispatch.choose_backend(x)


def run_python(program, **environment):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


PROGRAM = "import torch; from qgoft.ops import givens; givens.dispatch.native.installed_library = lambda: None; print(givens.dispatch.choose_backend(torch.zeros(1)), givens.mix_pairs(torch.ones(1, 3), torch.eye(2).repeat(2, 1, 1)).tolist())"


@pytest.mark.parametrize(
    ("environment", "reason"), [({"CC": "nothing"}, "no C compiler nothing was found"), ({"CC": "false"}, "the compiler failed")]
)
def test_without_compiler_uses_trees(tmp_path, environment, reason):
    said = run_python(PROGRAM, **environment, QGOFT_CACHE=str(tmp_path))
    assert "trees [[1.0, 1.0, 1.0]]" in said
    assert said.count("UserWarning") == 1
    assert f"the native Givens kernels are not available ({reason}" in said


@pytest.mark.parametrize(
    "mode",
    [
        "torch.inference_mode()",
        "torch.no_grad()",
        "torch.autocast('cpu')",
        "torch.device('meta')",
        "torch.autograd.graph.saved_tensors_hooks(lambda t: 1 / 0, lambda t: t)",
        "torch.autograd.set_multithreading_enabled(False)",
    ],
)
def test_first_use_in_any_mode(mode):
    said = run_python(f"import torch; from qgoft.ops.givens import native\nwith {mode}: print(native.is_available())")
    assert said.splitlines()[-1] == "True", said


def test_one_process_of_many_compiles(tmp_path):
    environment = {**os.environ, "QGOFT_CACHE": str(tmp_path)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM], **options) for _ in range(3)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert all("native [[1.0, 1.0, 1.0]]" in text for text in said), said
    assert "".join(said).count("compiling the native Givens kernels") == 1
    assert [path.name for path in tmp_path.glob("native/*/*.so")] == ["libgivens.so"]


def build_at_installation(tmp_path, **environment):
    """Build as pip does, and return the library."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    root = Path(native.__file__).parents[4]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return next(iter(tmp_path.glob("lib/qgoft/ops/givens/native/_library*.so")), None)


def test_installation_builds_the_library(tmp_path):
    path = build_at_installation(tmp_path)
    library = native._open(str(path))
    assert library.givens_source().decode() == build.source_hash()
    assert native.self_check(library) < native.TOLERANCE


def test_installation_without_compiler(tmp_path):
    assert build_at_installation(tmp_path, CC="false") is None


def test_library_of_other_sources_is_replaced(monkeypatch, tmp_path, library):
    """An installation in a source tree whose sources have changed since."""
    monkeypatch.setattr(native, "installed_library", lambda: tmp_path / "_library.so")
    monkeypatch.setattr(native, "_open", lambda path: Stale() if path == str(tmp_path / "_library.so") else library)
    native.load.cache_clear()
    try:
        assert native.load() is library
    finally:
        native.load.cache_clear()


class Stale:
    def givens_source(self):
        return b"other sources"


POOLS = """
import re
from qgoft.ops.givens import native

def pools():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if re.search(r"lib(g|i)?omp[^/]*[.]so", line)})

before = pools()
native.load()
print(len(before) > 0, pools() == before, pools())
"""


def test_library_brings_no_pool_of_threads():
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("the mapped libraries of this system are not known; test_bits_depend_on_neither_set_nor_threads runs")
    assert run_python(POOLS).startswith("True True"), run_python(POOLS)


def test_driver_agrees_for_every_instruction_set(tmp_path):
    """The C driver of `make test-native`, with kernels for AVX-512 in baseline instructions."""
    driver = str(tmp_path / "driver")
    source = str(Path(__file__).parent / "native" / "driver.c")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    subprocess.run(
        [*compiler, "-O1", "-std=gnu11", "-DEMULATE", *build.COMPILE_FLAGS[2:], source, "-o", driver, "-lm"], check=True, timeout=120
    )
    done = subprocess.run([driver, "300", "11"], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("300 cases agree with the definition within"), done.stdout
    assert platform.machine() != "x86_64" or done.stdout.rstrip().endswith("vectors of 4, 8 and 16 values")


def test_unwritable_cache_uses_trees(tmp_path):
    (tmp_path / "cache").write_text("a file")
    said = run_python(PROGRAM, QGOFT_CACHE=str(tmp_path / "cache"))
    assert "trees [[1.0, 1.0, 1.0]]" in said
    assert "set QGOFT_CACHE to a writable directory" in said


def test_wrong_library_is_not_used(monkeypatch, library):
    class Wrong:
        """Computes R^T for R."""

        def givens_apply(self, *arguments):
            return library.givens_apply(*arguments[:-2], 1 - arguments[-2], arguments[-1])

        givens_gradients = library.givens_gradients
        givens_source = library.givens_source

    assert native.self_check(library) < native.TOLERANCE
    assert native.self_check(Wrong()) > native.TOLERANCE
    monkeypatch.setattr(ctypes, "CDLL", lambda path: Wrong())
    native.load.cache_clear()
    try:
        with pytest.raises(native.NotAvailable, match=r"\.so (is wrong by|cannot be loaded)"):
            native.load()
    finally:
        monkeypatch.undo()
        native.load.cache_clear()


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def rotate_in_child(queue):
    x, _, blocks = case(64, rows=500)
    queue.put(native.forward(x, blocks)[0, 0].item())


def test_forked_process_computes_the_same(two_threads):
    """OpenMP waits forever in a forked process if it has used its threads before."""
    x, _, blocks = case(64, rows=500)
    expected = native.forward(x, blocks)[0, 0].item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12 about threads
        process = context.Process(target=rotate_in_child, args=(queue,))
        process.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        process.join(60)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_follow_their_contract(transpose, dtype):
    """Schema, fake implementation and gradients, as torch.library checks them."""
    x, _, blocks = case(9, dtype=dtype)
    arguments = (x.view(3, 7, 9).requires_grad_(), blocks.requires_grad_(), transpose)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.qgoft.rotate.default, arguments, test_utils=checks)


def test_compiled_code_calls_the_kernels():
    called = []

    def record(graph, example):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    x, _, blocks = case(9)
    rotated = torch.compile(givens.mix_pairs, fullgraph=True, backend=record)(x, blocks)
    assert torch.equal(rotated, native.forward(x, blocks))
    assert "qgoft.rotate.default" in called or "qgoft.rotate" in called, called
