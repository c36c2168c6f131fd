"""The classifier of radio signals: its signals, its models, and that it runs."""

import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.running import load, run


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("csignal_classifier.py")


def test_phases_of_each_kind(example: ModuleType):
    clean = lambda kind: np.exp(1j * np.asarray(example.phases(kind, jax.random.key(4), 9)))
    turns = [clean(kind)[1:] / clean(kind)[:-1] for kind in range(4)]
    for turn, expected in zip(turns, (1, 1j, -1), strict=False):
        np.testing.assert_allclose(turn, expected, rtol=0, atol=1e-5)
    assert np.std(np.angle(turns[3])) > 1


def test_signals_differ_in_nothing_but_phases(example: ModuleType):
    sizes = [
        np.abs(example.signal(jnp.asarray(kind), jax.random.key(6), 60.0)) for kind in range(4)
    ]
    for size in sizes[1:]:
        np.testing.assert_allclose(size, sizes[0], rtol=0, atol=0.02)
    pulses = sizes[0] > 1
    assert abs(pulses.mean() - example.DURATION / example.INTERVAL) < 0.02


def test_models_are_of_one_size(example: ModuleType):
    models = [example.Classifier(layer, jax.random.key(0)) for layer in example.LAYERS.values()]
    sizes = [example.size(model) for model in models]
    assert max(sizes) < 1.03 * min(sizes)
    # The pointwise one alone can't tell a signal from the same samples in another order.
    z = example.signal(jnp.asarray(1), jax.random.key(1))
    z = z.astype(models[0].first.weight.dtype)
    with jax.numpy_rank_promotion("allow"):
        moved = [float(jnp.max(jnp.abs(model(z) - model(z[::-1])))) for model in models]
    assert min(moved[:3]) > 1e-6 and moved[3] < 1e-6


@pytest.mark.slow
def test_csignal_classifier(tmp_path: Path):
    done = run("csignal_classifier.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = {
        line[:14].strip(): float(line.split()[-1].rstrip("%"))
        for line in done.stdout.splitlines()
        if line.endswith("%")
    }
    assert right["state space"] > 70 and max(right["convolution"], right["pointwise"]) < 35
    assert (tmp_path / "csignal_classifier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--seed -1", "--seed can't be negative"),
        ("--output nowhere/fit.png", "nowhere is not a folder"),
        ("--output fit", "can't be written as a file without an ending"),
    ],
)
def test_csignal_classifier_refuses(example, arguments, reason, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [example.__file__, *arguments.split()])
    with pytest.raises(SystemExit) as exit:
        example.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == ""
    assert reason in err and err.count("\n") == 1
