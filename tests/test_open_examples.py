"""The two-qubit gate on decaying qubits, checked with SciPy alone."""

import json
import re

import numpy as np
import pytest
import scipy.linalg

from tests.running import EXAMPLES, load, run

MANILA = json.loads((EXAMPLES / "data" / "ibm_devices.json").read_text())["devices"]["ibmq_manila"]


@pytest.mark.slow
def test_cz_gate(tmp_path):
    """The population of the target after the pulse, by exponentials of a Liouvillian written out."""
    done = run("cz_gate.py", "--quick", "--duration", "60", "--pulse", "pulse.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cz_gate.png").stat().st_size > 10_000
    errors = [
        float(e) for e in re.findall(r"error (\S+) as designed, (\S+) refined", done.stdout)[0]
    ]
    assert errors[1] <= errors[0] < 1

    _, re0, re1, im0, im1 = np.loadtxt(tmp_path / "pulse.txt", unpack=True)
    drives = np.stack([re0 + 1j * im0, re1 + 1j * im1])
    assert np.abs(drives).max() < 1
    printed = float(re.search(r"target from 0, control in 1: (\S+)", done.stdout)[1])
    np.testing.assert_allclose(_population(drives), printed, rtol=0, atol=2e-6)


def _population(drives: np.ndarray) -> float:
    """Of the target's state 1, from 10."""
    module = load("cz_gate.py")
    qubits = MANILA["qubits"][:2]
    b = np.diag(np.sqrt([1.0, 2.0, 3.0]), 1)
    lower = [np.kron(b, np.eye(3)), np.kron(np.eye(4), b[:3, :3])]
    one = np.eye(12)
    H = (qubits[0]["omega_q"] - qubits[1]["omega_q"]) * lower[0].T @ lower[0]
    H = H + MANILA["coupling_J"]["0q1"] * (lower[0].T @ lower[1] + lower[1].T @ lower[0])
    S = 0
    for qubit, a in zip(qubits, lower, strict=True):
        n = a.T @ a
        H = H + qubit["anharmonicity"] / 2 * (n @ n - n)
        T1, T2 = 1e3 * qubit["T1"], 1e3 * qubit["T2"]
        for L in (a / np.sqrt(T1), n * np.sqrt(2 / T2 - 1 / T1)):
            S = S + np.kron(L, L) - np.kron(L.T @ L, one) / 2 - np.kron(one, L.T @ L) / 2
    _, V = np.linalg.eigh(H)
    dressed = lambda k: V[:, np.argmax(np.abs(V[k]))]
    rho = np.outer(dressed(3), dressed(3)).reshape(-1).astype(complex)
    for d in drives.T:
        G = H.astype(complex)
        for qubit, a, amplitude in zip(qubits, lower, d, strict=True):
            G = G + qubit["drive"] / 2 * (amplitude * a.T + amplitude.conj() * a)
        step = -1j * (np.kron(G, one) - np.kron(one, G.T)) + S
        rho = scipy.linalg.expm(module.HELD * MANILA["dt"] * step) @ rho
    rho = rho.reshape(12, 12)
    return sum((dressed(k) @ rho @ dressed(k)).real for k in (1, 4))


@pytest.mark.slow
def test_pairs_that_arent_coupled_are_refused(tmp_path):
    done = run("cz_gate.py", "--pair", "0", "3", cwd=tmp_path)
    assert done.returncode == 2 and "aren't coupled" in done.stderr
