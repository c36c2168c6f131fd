"""JAX functions inside PyTorch, by PyTorch's own checks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.interop.torch import wrap

torch = pytest.importorskip("torch")
# PyTorch's forward mode, where it is first used, compiles something of its own by what it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SIGMA_X = np.array([[0.0, 1.0], [1.0, 0.0]])


def _tensors(*dtypes, n: int = 3) -> tuple:
    generator = torch.Generator().manual_seed(7)
    make = lambda dtype: torch.randn(n, dtype=dtype, generator=generator).requires_grad_()
    return tuple(map(make, dtypes))


C, R = torch.complex128, torch.float64
FUNCTIONS = {
    "not holomorphic, real beside complex, two results": (
        lambda a, b, x: (jnp.conj(a) * b**2 * jnp.sin(x) + a, jnp.abs(b) ** 2 * x),
        (C, C, R),
    ),
    "from complex to real": (lambda a: jnp.sum(a.real**3 * jnp.imag(a)), (C,)),
    "from real to complex": (lambda x: jnp.exp(1j * x) * jnp.sum(x), (R,)),
    "with a rule of its own": (
        lambda A, b: cd.linalg.solve(jnp.diag(A + 2) + 0.1 * jnp.outer(b, jnp.conj(A)), b),
        (C, C),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name):
    fn, dtypes = FUNCTIONS[name]
    assert torch.autograd.gradcheck(wrap(fn), _tensors(*dtypes), check_forward_ad=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradgradcheck(name):
    fn, dtypes = FUNCTIONS[name]
    assert torch.autograd.gradgradcheck(wrap(fn), _tensors(*dtypes), check_fwd_over_rev=True)


def test_gradient_is_pytorchs():
    # The same formula in PyTorch, twice differentiated; and once more by JAX, conjugated.
    (a, x), fn = _tensors(C, R), wrap(lambda a, x: jnp.sum(jnp.abs(jnp.conj(a) * x + a**2) ** 2))
    native = torch.sum(torch.abs(a.conj() * x + a**2) ** 2)
    found, expected = (
        torch.autograd.grad(value, (a, x), create_graph=True) for value in (fn(a, x), native)
    )
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)
        assert f.dtype == e.dtype
    again = (torch.autograd.grad(g[0].imag.sum() + g[1].sum(), (a, x)) for g in (found, expected))
    for f, e in zip(*again, strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.parametrize("real, complex_", [("float32", "complex64"), ("float64", "complex128")])
def test_dtypes_are_kept(real, complex_):
    a, x = _tensors(getattr(torch, complex_), getattr(torch, real))
    y = wrap(lambda a, x: a * x)(a, x)
    assert y.dtype == a.dtype
    y.abs().sum().backward()
    assert (a.grad.dtype, x.grad.dtype) == (a.dtype, x.dtype)


def test_torch_func():
    (a, x), n = (t.detach() for t in _tensors(C, R)), 3
    L = wrap(lambda a, x: jnp.sum(jnp.abs(a) ** 2 * x**3))
    size = a.abs() ** 2
    gradient = torch.func.grad(L, argnums=1)
    torch.testing.assert_close(gradient(a, x), 3 * size * x**2)
    of_x = lambda x: L(a, x)
    for hessian in (torch.func.hessian(of_x), torch.func.jacrev(torch.func.grad(of_x))):
        torch.testing.assert_close(hessian(x), torch.diag(6 * size * x))
    batch = torch.stack([x, 2 * x], 1)
    mapped = torch.func.vmap(gradient, in_dims=(None, 1))(a, batch)
    torch.testing.assert_close(mapped, torch.stack([3 * size * x**2, 12 * size * x**2]))
    assert mapped.shape == (2, n)


def test_pytrees_integers_and_what_is_not_used():
    a, b = _tensors(C, C)
    fn = wrap(lambda p, i: {"double": 2 * p["a"][i], "where": jnp.argmax(jnp.abs(p["a"]))})
    out = fn({"a": a, "b": b}, torch.tensor([0, 2]))
    assert set(out) == {"double", "where"} and out["where"].dtype == torch.int64
    assert not out["where"].requires_grad
    out["double"].real.sum().backward()
    torch.testing.assert_close(a.grad, torch.tensor([2, 0, 2], dtype=C))
    assert torch.all(b.grad == 0)


def test_views_are_read_as_they_stand():
    a = torch.randn(3, 2, dtype=C, generator=torch.Generator().manual_seed(1))
    fn = wrap(lambda a: a)
    for view in (a.T, a.conj(), a.conj().imag, a[::2], a.real, a.expand(4, 3, 2), a[0, 0]):
        torch.testing.assert_close(fn(view), view.resolve_conj().resolve_neg())


def test_writing_into_a_result_changes_nothing_else():
    (a,) = (t.detach() for t in _tensors(C))
    constant = jnp.ones(3)
    before = a.clone()
    for out in wrap(lambda a: (a, constant))(a):
        out.zero_()
    torch.testing.assert_close(a, before)
    assert jnp.all(constant == 1)


def test_compiled_once():
    count = 0

    def fn(a):
        nonlocal count
        count += 1
        return a**2

    square = wrap(fn)
    for _ in range(3):
        (a,) = _tensors(C)
        square(a).abs().sum().backward()
    assert count == 2  # for the value, and for the gradient


class _Rotations(torch.nn.Module):
    """A pulse from a linear layer, and how far it drives a qubit: by cdiffeq."""

    def __init__(self):
        super().__init__()
        self.pulse = torch.nn.Linear(1, 4, dtype=C)
        edges = np.linspace(0, 1, 5)

        def solve(pulses):
            def excited(pulse):
                H = cd.constant(np.diag([0.5, -0.5])) + cd.pwc(edges, pulse.real, SIGMA_X)
                H = H + cd.pwc(edges, jnp.imag(pulse), np.array([[0, -1j], [1j, 0]]))
                return jnp.abs(cd.sesolve(H, np.array([1.0, 0.0]), [0.0, 1.0]).final_state[1]) ** 2

            return jax.vmap(excited)(pulses)

        self.solve = wrap(solve)

    def forward(self, wanted):
        return self.solve(self.pulse(wanted.to(C)[:, None]))


@pytest.mark.slow
def test_training_a_torch_model():
    torch.manual_seed(0)
    model, wanted = _Rotations(), torch.tensor([0.1, 0.5, 0.8], dtype=R)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.mean((model(wanted) - wanted) ** 2)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.slow
def test_failure_is_passed_on():
    blow_up = wrap(lambda y: cd.ode.solve(lambda t, y, _: y**2, y, [0.0, 3.0]).ys[-1])
    with pytest.raises(jax.errors.JaxRuntimeError, match="step size vanished"):
        blow_up(torch.tensor(1.0, dtype=R))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: wrap(3), TypeError, "fn must be a function"),
        (lambda: wrap(abs)(1.0), TypeError, "abs: argument 0 is float, expected a torch.Tensor"),
        (lambda: wrap(abs)([torch.ones(1), 1]), TypeError, r"argument 0\[1\] is int"),
        (
            lambda: wrap(lambda a: "a")(torch.ones(1)),
            TypeError,
            "must return arrays, but the result is str",
        ),
        (lambda: wrap(abs)(torch.ones(1, device="meta")), ValueError, "on meta: .* sees cpu"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_64_bits_are_not_cut_down():
    with jax.enable_x64(False), pytest.raises(TypeError, match="complex128, which JAX would cut"):
        wrap(lambda a: a)(torch.ones(1, dtype=C))


@pytest.mark.slow
def test_absent_torch_is_named():
    code = (
        "import sys, cdiffeq as cd; assert 'torch' not in sys.modules; sys.modules['torch'] = None\n"
        "try: cd.interop.torch.wrap(abs)\n"
        "except ImportError as error: assert 'pip install torch' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    a = torch.randn(3, dtype=C, device="cuda", requires_grad=True)
    y = wrap(lambda a: jnp.conj(a) ** 2)(a)
    assert y.device == a.device
    assert torch.autograd.gradcheck(wrap(lambda a: jnp.conj(a) ** 2), (a,))
