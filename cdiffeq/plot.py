r"""Pictures of pulses, states and spectra, with matplotlib (``pip install "cdiffeq[plot]"``).

Each function draws into the axes that it is given, or into new ones, and returns the axes, whose labels
and limits stay the caller's to change. Importing this module imports no matplotlib and changes none of its
settings. Lines have Okabe and Ito's colours, and dashes that tell them apart in print
(M. Okabe, K. Ito 2002, https://jfly.uni-koeln.de/color/).

A phase is drawn in a circle of colours of equal radius about a grey, in Oklab (B. Ottosson 2020,
https://bottosson.github.io/posts/oklab/), so that equal steps of phase are equal steps of colour all
around. The circle is tilted: at phase 0 it is light, at pi dark, and at pi/2 and -pi/2 it is yellow and blue,
which readers who don't see red and green apart do see apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln, xlogy

from cdiffeq import _errors
from cdiffeq.schrodinger import _hamiltonian

# Blue, vermilion, green, purple, orange, light blue, black: Okabe and Ito's, without their yellow, which is
# too light for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")

# exp(-y/2), where the recurrence of `wigner_function` begins, is in the range of floating point as far out
# as any state of so many levels reaches.
_MOST_LEVELS = 340


def pulse(
    ts: Any,
    values: Any,
    ax: Any = None,
    *,
    name: str = "u",
    unit: str | None = None,
    time_unit: str | None = None,
    **line: Any,
) -> Any:
    """Draws a control: its real part and, if it is complex, its imaginary part.

    - `ts`: times (k,) of samples that a line joins; or edges (k + 1,), in between which the amplitude
      is constant, as for `cd.pwc`.
    - `values`: real or complex, (k,).
    - `ax`: matplotlib axes; new ones if None.
    - `name`: the control's symbol, in mathematical type, for the legend.
    - `unit`, `time_unit`: what the numbers are in, for the labels.
    - `line`: properties of matplotlib for both lines, such as ``lw=2`` or ``alpha=0.5``.

    Returns the axes. Raises `ValueError` for shapes that don't fit and numbers that aren't finite,
    `TypeError` for complex times and traced arrays, `ImportError` without matplotlib.

    >>> ax = cd.plot.pulse([0.0, 1.0, 2.0], [0.3 + 0.1j, 0.5j], unit="rad/ns", time_unit="ns")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('time (ns)', 'amplitude (rad/ns)')
    """
    ts, values = _vector("pulse", "ts", ts), _array("pulse", "values", values)
    if values.ndim != 1 or len(values) == 0 or len(ts) - len(values) not in (0, 1):
        raise ValueError(
            "pulse: values must be a vector, one for each time or one fewer than there are edges; got "
            f"shapes {values.shape} and {ts.shape} of ts."
        )
    ax = _axes(ax)
    parts = {f"${name}$": values}
    if np.iscomplexobj(values):
        parts = {f"Re ${name}$": values.real, f"Im ${name}$": values.imag}
    for i, (label, part) in enumerate(parts.items()):
        style = dict(color=COLORS[i], ls=DASHES[i], label=label) | line
        if len(ts) > len(values):
            ax.stairs(part, ts, baseline=None, **style)
        else:
            ax.plot(ts, part, **style)
    ax.set(xlabel=_label("time", time_unit), ylabel=_label("amplitude", unit))
    ax.margins(x=0)
    ax.legend(frameon=False)
    return ax


def populations(
    ts: Any,
    states: Any,
    ax: Any = None,
    *,
    levels: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    time_unit: str | None = None,
    log: bool = False,
) -> Any:
    r"""Draws the populations of levels over time.

    - `ts`: times (time,).
    - `states`: kets (time, n), real or complex, or density matrices (time, n, n): of a `Result` its
      `.states`, if it holds one state for each time; of a batch pick one.
    - `levels`: which levels to draw, all by default; `labels`: their names.
    - `time_unit`: what times are in, for the label. `log`: a logarithmic axis of populations.
    - `ax`: matplotlib axes; new ones if None.

    Returns the axes. Raises `ValueError` for shapes that don't fit, a level that isn't there, matrices that
    aren't Hermitian (a batch of kets, perhaps) and numbers that aren't finite; `TypeError` and
    `ImportError` as `pulse` does.

    >>> result = cd.sesolve([[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0], np.linspace(0, 3, 31))
    >>> ax = cd.plot.populations(result.ts, result.states)
    >>> len(ax.lines), ax.get_ylabel()
    (2, 'population')
    """
    ts, states = _vector("populations", "ts", ts), _array("populations", "states", states)
    if states.ndim not in (2, 3) or len(states) != len(ts):
        raise ValueError(
            "populations: states must be kets (time, n) or density matrices (time, n, n), got shape "
            f"{states.shape} for {len(ts)} times."
        )
    if states.ndim == 3:
        _require_hermitian("populations", states)
        shares = np.einsum("tnn->tn", states).real
    else:
        shares = np.abs(states) ** 2
    n = shares.shape[1]
    levels = range(n) if levels is None else list(levels)
    if any(not 0 <= level < n for level in levels):
        raise ValueError(f"populations: levels must lie between 0 and {n - 1}, got {levels}.")
    labels = [rf"$|{level}\rangle$" for level in levels] if labels is None else list(labels)
    if len(labels) != len(levels):
        raise ValueError(f"populations: {len(levels)} levels, but {len(labels)} labels.")
    ax = _axes(ax)
    for i, (level, label) in enumerate(zip(levels, labels, strict=True)):
        style = dict(color=COLORS[i % len(COLORS)], ls=DASHES[i % len(DASHES)], label=label)
        ax.plot(ts, shares[:, level], **style)
    ax.set(xlabel=_label("time", time_unit), ylabel="population")
    ax.margins(x=0)
    if log:
        ax.set_yscale("log")
    ax.legend(frameon=False, ncols=1 + len(levels) // 5)
    return ax


def wavefunction(
    x: Any,
    psi: Any,
    ax: Any = None,
    *,
    y: Any = None,
    x_unit: str | None = None,
    colorbar: bool = True,
) -> Any:
    r"""Draws a wave function with its phase as colour.

    In one dimension the height is |psi|^2 and the colour below it the phase. In two, the colour is the
    phase and its strength |psi|, relative to the largest: where there is nothing, there is white.

    - `x`: points (nx,), which ascend; `y`: points (ny,) of the second dimension, if there is one.
    - `psi`: real or complex, (nx,), or (nx, ny) with `y`.
    - `x_unit`: what lengths are in, for the labels. `colorbar`: whether to draw the scale of phases.
    - `ax`: matplotlib axes; new ones if None.

    Returns the axes. Raises `ValueError` for shapes that don't fit, points that don't ascend and numbers
    that aren't finite; `TypeError` and `ImportError` as `pulse` does.

    >>> x = np.linspace(-5, 5, 101)
    >>> ax = cd.plot.wavefunction(x, np.exp(-x**2 / 2 + 2j * x), x_unit="nm")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('x (nm)', '$|\\psi|^2$ (1/nm)')
    """
    x, psi = _points("wavefunction", "x", x), _array("wavefunction", "psi", psi)
    if y is not None:
        y = _points("wavefunction", "y", y)
    shape = (len(x),) if y is None else (len(x), len(y))
    if psi.shape != shape:
        raise ValueError(
            f"wavefunction: psi must have shape {shape} {'(len(x),)' if y is None else '(len(x), len(y))'}, "
            f"got {psi.shape}."
        )
    ax = _axes(ax)
    phase = np.angle(psi)
    if y is None:
        _colored_area(ax, x, np.abs(psi) ** 2, phase)
        per_unit = None if x_unit is None else f"1/{x_unit}"
        ax.set(xlabel=_label("x", x_unit), ylabel=_label(r"$|\psi|^2$", per_unit))
        ax.set_xlim(x[0], x[-1])
        ax.set_ylim(0, None)
    else:
        size = np.abs(psi)
        strength = (size / max(size.max(), np.finfo(float).tiny))[..., None]
        image = 1 - strength * (1 - _phase_colors(phase))
        ax.pcolormesh(x, y, image.transpose(1, 0, 2), rasterized=True)
        ax.set(xlabel=_label("x", x_unit), ylabel=_label("y", x_unit), aspect="equal")
    if colorbar:
        _phase_bar(ax)
    return ax


def bloch(states: Any, ax: Any = None, **line: Any) -> Any:
    r"""Draws the path of a qubit's state in the Bloch sphere, from a circle to a dot.

    - `states`: kets (time, 2), or density matrices (time, 2, 2), which may lie inside the sphere. Kets are
      normalised. The ket (1, 0) is at the top, (1, 1)/sqrt(2) on the x axis.
    - `ax`: three-dimensional matplotlib axes; new ones if None.
    - `line`: properties of matplotlib for the path.

    Returns the axes. Raises `ValueError` for shapes that don't fit, matrices that aren't Hermitian, a zero
    ket, numbers that aren't finite, and axes that aren't three-dimensional; `TypeError` and `ImportError`
    as `pulse` does.

    >>> result = cd.sesolve([[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0], np.linspace(0, 1, 21))
    >>> cd.plot.bloch(result.states).name
    '3d'
    """
    r = _bloch_vectors(_array("bloch", "states", states))
    ax = _axes(ax, projection="3d")
    if ax.name != "3d":
        raise ValueError('bloch: ax must be three-dimensional: made with projection="3d".')
    around = np.linspace(0, 2 * np.pi, 73)
    for height in np.sin(np.pi / 6 * np.arange(-2, 3)):
        radius, thick = np.sqrt(1 - height**2), 0.8 if height == 0 else 0.4
        ax.plot(radius * np.cos(around), radius * np.sin(around), height, color="0.75", lw=thick)
    for turn in np.pi / 4 * np.arange(4):
        ring = np.cos(turn) * np.sin(around), np.sin(turn) * np.sin(around), np.cos(around)
        ax.plot(*ring, color="0.75", lw=0.8 if turn == 0 else 0.4)
    for axis, name in zip(np.eye(3), "xyz", strict=True):
        ax.plot(*np.stack([-axis, axis], 1), color="0.55", lw=0.6)
        if name != "z":
            ax.text(*(1.2 * axis), f"${name}$", ha="center", va="center")
    ax.text(0, 0, 1.2, r"$|0\rangle$", ha="center", va="center")
    ax.text(0, 0, -1.25, r"$|1\rangle$", ha="center", va="center")
    style = dict(color=COLORS[0], lw=1.5) | line
    ax.plot(*r.T, **style)
    ax.plot(*r[:1].T, "o", mfc="white", color=style["color"], ms=5)
    ax.plot(*r[-1:].T, "o", color=style["color"], ms=5)
    ax.set(box_aspect=(1, 1, 1), xlim=(-0.8, 0.8), ylim=(-0.8, 0.8), zlim=(-0.8, 0.8))
    ax.set_axis_off()
    return ax


def wigner(state: Any, x: Any, p: Any = None, ax: Any = None, *, colorbar: bool = True) -> Any:
    r"""Draws the Wigner function of an oscillator's state, blue where it is negative.

    - `state`: a ket (n,) or a density matrix (n, n), in the number basis.
    - `x`, `p`: points (nx,) and (np,), which ascend, of the quadratures ``x = (a + a^+)/sqrt(2)`` and
      ``p = -i (a - a^+)/sqrt(2)``, dimensionless: ``<x^2> = 1/2`` in the ground state. `p` is `x` by default.
    - `colorbar`: whether to draw the scale. `ax`: matplotlib axes; new ones if None.

    Returns the axes. Raises `ValueError` for shapes that don't fit, points that don't ascend, a matrix that
    isn't Hermitian and numbers that aren't finite; `TypeError` and `ImportError` as `pulse` does.
    States have at most 340 levels. Cost: see `wigner_function`.

    >>> ax = cd.plot.wigner(np.array([0.0, 1.0]), np.linspace(-3, 3, 61))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('$x / x_0$', '$p / p_0$')
    """
    x = _points("wigner", "x", x)
    p = x if p is None else _points("wigner", "p", p)
    W = wigner_function(state, x, p)
    ax = _axes(ax)
    # The colours reach as far on both sides, so that white is zero.
    most = np.abs(W).max()
    image = ax.pcolormesh(x, p, W.T, cmap="RdBu_r", vmin=-most, vmax=most, rasterized=True)
    ax.set(xlabel="$x / x_0$", ylabel="$p / p_0$", aspect="equal")
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="Wigner function $W(x, p)$")
    return ax


def wigner_function(state: Any, x: Any, p: Any) -> Float[np.ndarray, "nx np"]:
    r"""The Wigner function of an oscillator's state, on a grid of quadratures.

        W(x, p) = 1/pi int <x - y| rho |x + y> exp(2ipy) dy,        int int W dx dp = tr rho

    with hbar = 1, arguments as for `wigner`. In the number basis, with alpha = (x + ip)/sqrt(2) and m <= n,

        W_mn = (-1)^m / pi exp(i (n-m) arg alpha) l_m(4|alpha|^2),
        l_m(y) = sqrt(m!/n!) y^((n-m)/2) exp(-y/2) L_m^(n-m)(y)

    is what rho_mn adds (K. E. Cahill, R. J. Glauber 1969, doi:10.1103/PhysRev.177.1882); the Laguerre
    functions l_m come by their recurrence in m. Returns a NumPy array (nx, np), real. Cost: n^2/2 steps of
    the recurrence at each point; memory: a few grids.

    >>> cd.plot.wigner_function(np.array([0.0, 1.0]), np.array([0.0]), np.array([0.0])) * np.pi
    array([[-1.]])
    """
    x, p = _points("wigner", "x", x), _points("wigner", "p", p)
    rho = _array("wigner", "state", state)
    if rho.ndim == 1:
        rho = np.outer(rho, rho.conj())
    if rho.ndim != 2 or rho.shape[0] != rho.shape[1] or rho.size == 0:
        raise ValueError(
            f"wigner: state must be a ket (n,) or a density matrix (n, n), got shape {rho.shape}."
        )
    _require_hermitian("wigner", rho)
    if len(rho) > _MOST_LEVELS:
        raise ValueError(f"wigner: state has {len(rho)} levels, at most {_MOST_LEVELS} are drawn.")
    alpha = (x[:, None] + 1j * p) / np.sqrt(2)
    y, phase = 4 * np.abs(alpha) ** 2, np.exp(1j * np.angle(alpha))
    W = np.zeros(alpha.shape)
    for k in range(len(rho)):
        diagonal = np.diagonal(rho, k)
        before, l = 0.0, np.exp((xlogy(k, y) - y - gammaln(k + 1)) / 2)
        terms = diagonal[0] * l
        for m, entry in enumerate(diagonal[1:], start=1):
            after = (2 * m - 1 + k - y) * l - np.sqrt((m - 1) * (m - 1 + k)) * before
            before, l = l, after / np.sqrt(m * (m + k))
            terms = terms + (-1) ** m * entry * l
        W += (1 if k == 0 else 2) / np.pi * np.real(phase**k * terms)
    return W


def spectrum(
    ts: Any,
    values: Any,
    ax: Any = None,
    *,
    time_unit: str | None = None,
    frequency_unit: str | None = None,
    floor: float | int = -80,
    **line: Any,
) -> Any:
    r"""Draws the power spectrum of a signal, in decibels below its largest value.

    The signal's discrete Fourier transform: a component exp(2 pi i f t) stands at +f, so that a state of
    energy E > 0, which turns as exp(-iEt), stands at -E/(2 pi). A real signal is drawn at f >= 0 alone. No
    window is applied: multiply by one if the signal doesn't begin and end near zero.

    - `ts`: times (k,), equally spaced and ascending, k > 1.
    - `values`: real or complex, (k,).
    - `time_unit`: what times are in; `frequency_unit`: the name of its inverse, ``"1/ns"`` by default.
    - `floor`: where the axis ends, in decibels. `line`: properties of matplotlib for the line.
    - `ax`: matplotlib axes; new ones if None.

    Returns the axes. Raises `ValueError` for shapes that don't fit, times that aren't equally spaced, a
    signal of zeros and numbers that aren't finite; `TypeError` and `ImportError` as `pulse` does.

    >>> t = 0.1 * np.arange(64)
    >>> ax = cd.plot.spectrum(t, np.exp(2j * np.pi * 2.5 * t), time_unit="ns", frequency_unit="GHz")
    >>> f, power = ax.lines[0].get_data()
    >>> float(f[np.argmax(power)]), ax.get_xlabel()
    (2.5, 'frequency (GHz)')
    """
    ts, values = _vector("spectrum", "ts", ts), _array("spectrum", "values", values)
    if values.shape != ts.shape or len(ts) < 2:
        raise ValueError(
            "spectrum: ts and values must be vectors of one length, 2 or more; got shapes "
            f"{ts.shape} and {values.shape}."
        )
    steps = np.diff(ts)
    step = (ts[-1] - ts[0]) / (len(ts) - 1)
    if not step > 0 or np.max(np.abs(steps - step)) > 1e-3 * step:
        raise ValueError(
            f"spectrum: ts must be equally spaced and ascend, got steps from {steps.min():.6g} to "
            f"{steps.max():.6g}."
        )
    if np.iscomplexobj(values):
        f = np.fft.fftshift(np.fft.fftfreq(len(ts), step))
        power = np.fft.fftshift(np.abs(np.fft.fft(values)) ** 2)
    else:
        f, power = np.fft.rfftfreq(len(ts), step), np.abs(np.fft.rfft(values)) ** 2
    if power.max() == 0:
        raise ValueError("spectrum: values are all zero.")
    decibels = 10 * np.log10(np.maximum(power / power.max(), np.finfo(float).tiny))
    ax = _axes(ax)
    ax.plot(f, decibels, **(dict(color=COLORS[0]) | line))
    if frequency_unit is None and time_unit is not None:
        frequency_unit = f"1/{time_unit}"
    ax.set(xlabel=_label("frequency", frequency_unit), ylabel="power (dB)")
    ax.set_xlim(f[0], f[-1])
    ax.set_ylim(floor, 5)
    return ax


def _axes(ax: Any, projection: str | None = None) -> Any:
    """`ax`, or the axes of a new figure."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'cdiffeq.plot needs matplotlib: pip install "cdiffeq[plot]", or pip install matplotlib.'
        ) from error
    if ax is not None:
        return ax
    return plt.figure(layout="constrained").add_subplot(projection=projection)


def _label(name: str, unit: str | None) -> str:
    return name if unit is None else f"{name} ({unit})"


def _array(function: str, name: str, a: Any) -> np.ndarray:
    """`a` in NumPy, floating or complex and finite."""
    if _errors.is_traced(a):
        raise TypeError(f"{function}: {name} is traced: draw outside of jax.jit, grad and vmap.")
    array = np.asarray(_hamiltonian.as_dense(f"{function}: {name}", a))
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{function}: {name} must be finite.")
    return array


def _vector(function: str, name: str, x: Any) -> Float[np.ndarray, " n"]:
    """A real vector."""
    x = _array(function, name, x)
    if np.iscomplexobj(x):
        raise TypeError(f"{function}: {name} must be real, got {x.dtype}.")
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"{function}: {name} must be a vector, got shape {x.shape}.")
    return x.astype(float)


def _points(function: str, name: str, x: Any) -> Float[np.ndarray, " n"]:
    """The points of an axis, ascending."""
    x = _vector(function, name, x)
    if not np.all(np.diff(x) > 0):
        raise ValueError(f"{function}: {name} must ascend.")
    return x


def _require_hermitian(function: str, rho: np.ndarray) -> None:
    off = np.abs(rho - np.swapaxes(rho, -1, -2).conj()).max()
    if off > 1e-3 * np.abs(rho).max():
        raise ValueError(
            f"{function}: an array of shape {rho.shape} is read as density matrices, but they aren't "
            f"Hermitian (off by {off:.2g})."
        )


def _bloch_vectors(states: np.ndarray) -> Float[np.ndarray, "time 3"]:
    """(<sigma_x>, <sigma_y>, <sigma_z>) of kets (time, 2) or density matrices (time, 2, 2)."""
    if states.ndim == 2 and states.shape[1] == 2:
        norms = np.linalg.norm(states, axis=1)[:, None]
        if np.any(norms == 0):
            raise ValueError("bloch: states must not hold a zero ket.")
        kets = states / norms
        rho = kets[:, :, None] * kets[:, None].conj()
    elif states.ndim == 3 and states.shape[1:] == (2, 2):
        rho = states
        _require_hermitian("bloch", rho)
    else:
        raise ValueError(
            "bloch: states must be kets (time, 2) or density matrices (time, 2, 2), got shape "
            f"{states.shape}."
        )
    down = rho[:, 1, 0]
    return np.stack([2 * down.real, 2 * down.imag, (rho[:, 0, 0] - rho[:, 1, 1]).real], 1)


def _phase_colors(phase: np.ndarray) -> Float[np.ndarray, "... 3"]:
    """The sRGB colours of phases: a tilted circle in Oklab, as the module's head says."""
    # Radius and centre are such that the whole circle can be shown: Oklab's L, a, b.
    center, tilt, radius = np.array([0.6, 0.04, -0.04]), np.pi / 4, 0.149
    light = np.array([np.cos(tilt), np.sin(tilt), 0.0])
    yellow = np.array([0.0, 0.0, 1.0])
    phase = np.asarray(phase)[..., None]
    lab = center + radius * (np.cos(phase) * light + np.sin(phase) * yellow)
    return _srgb(lab)


def _srgb(lab: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """sRGB of Oklab; the matrices are Ottosson's."""
    cone = np.array([
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ])  # fmt: skip
    linear_of_cone = np.array([
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ])  # fmt: skip
    linear = np.clip((lab @ cone.T) ** 3 @ linear_of_cone.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _phase_bar(ax: Any) -> None:
    """The scale of phases beside `ax`."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors = ListedColormap(_phase_colors(np.linspace(-np.pi, np.pi, 256)))
    scale = ScalarMappable(Normalize(-np.pi, np.pi), colors)
    bar = ax.figure.colorbar(scale, ax=ax, label="phase (rad)")
    bar.set_ticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi])
    bar.set_ticklabels([r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])


def _colored_area(ax: Any, x: np.ndarray, height: np.ndarray, phase: np.ndarray) -> None:
    """The area below a line, coloured from point to point."""
    from matplotlib.collections import PolyCollection

    # A strip reaches from half way before a point to half way after it.
    middle, middle_height = (x[1:] + x[:-1]) / 2, (height[1:] + height[:-1]) / 2
    left, right = np.append(x[0], middle), np.append(middle, x[-1])
    left_height = np.append(height[0], middle_height)
    right_height = np.append(middle_height, height[-1])
    corners = [
        (left, 0 * x), (left, left_height), (x, height), (right, right_height), (right, 0 * x),
    ]  # fmt: skip
    colors = _phase_colors(phase)
    strips = PolyCollection(
        list(np.stack([np.stack(c, -1) for c in corners], 1)), facecolors=colors, edgecolors=colors, lw=0.3,
        rasterized=True,
    )  # fmt: skip
    ax.add_collection(strips)
    ax.plot(x, height, color="0.15", lw=0.8)
