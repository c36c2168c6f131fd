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
    key, n = jax.random.key(4), example.PER_SYMBOL
    bpsk, qpsk, msk, fsk = (np.asarray(example.phases(kind, key)) for kind in range(4))
    # Linear modulations hold a phase of their alphabet during a symbol.
    for phase, step in ((bpsk, np.pi), (qpsk, np.pi / 2)):
        by_symbol = phase.reshape(-1, n)
        assert np.all(by_symbol == by_symbol[:, :1])
        np.testing.assert_allclose(phase / step, np.round(phase / step), atol=1e-6)
        assert len(set(np.round(phase / step))) == round(2 * np.pi / step)
    # The others turn by a quarter and by half of a turn each symbol, one way or the other.
    for phase, turn in ((msk, np.pi / 2), (fsk, np.pi)):
        np.testing.assert_allclose(np.abs(np.diff(phase)), turn / n, rtol=1e-4)


def test_models_are_of_one_size(example: ModuleType):
    models = [example.Classifier(layer, jax.random.key(0)) for layer in example.LAYERS.values()]
    sizes = [example.size(model) for model in models]
    assert max(sizes) < 1.03 * min(sizes)
    # The pointwise one alone can't tell a signal from the same samples in another order.
    z = example.signal(jnp.asarray(1), jax.random.key(1))
    z = z.astype(models[0].first.weight.dtype)
    with jax.numpy_rank_promotion("allow"):
        moved = [float(jnp.max(jnp.abs(model(z) - model(z[::-1])))) for model in models]
    assert moved[0] > 1e-6 and moved[1] > 1e-6 and moved[2] < 1e-6


@pytest.mark.slow
def test_csignal_classifier(tmp_path: Path):
    done = run("csignal_classifier.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    right = {
        line[:14].strip(): float(line.split()[-1].rstrip("%"))
        for line in done.stdout.splitlines()
        if line.endswith("%")
    }
    assert right["state space"] > 40 and right["pointwise"] < 35
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
