"""The Schrödinger equation: Hamiltonians, controls and their propagation."""

from cdiffeq.schrodinger._crank_nicolson import CrankNicolson as CrankNicolson
from cdiffeq.schrodinger._hamiltonian import Hamiltonian as Hamiltonian
from cdiffeq.schrodinger._hamiltonian import constant as constant
from cdiffeq.schrodinger._hamiltonian import modulated as modulated
from cdiffeq.schrodinger._hamiltonian import pwc as pwc
from cdiffeq.schrodinger._hamiltonian import timecallable as timecallable
from cdiffeq.schrodinger._magnus import Chebyshev as Chebyshev
from cdiffeq.schrodinger._magnus import Exponential as Exponential
from cdiffeq.schrodinger._magnus import Krylov as Krylov
from cdiffeq.schrodinger._magnus import Magnus as Magnus
from cdiffeq.schrodinger._mcsolve import Trajectories as Trajectories
from cdiffeq.schrodinger._mcsolve import mcsolve as mcsolve
from cdiffeq.schrodinger._mesolve import mesolve as mesolve
from cdiffeq.schrodinger._result import Result as Result
from cdiffeq.schrodinger._result import Stats as Stats
from cdiffeq.schrodinger._sesolve import propagator as propagator
from cdiffeq.schrodinger._sesolve import sesolve as sesolve
from cdiffeq.schrodinger._spins import modes as modes
from cdiffeq.schrodinger._spins import spin_chain as spin_chain
from cdiffeq.schrodinger._split import SplitOperator as SplitOperator
from cdiffeq.schrodinger._steadystate import steadystate as steadystate
