"""Adjoint rules of their own for solvers of complex-valued equations, in JAX."""

from cdiffeq import fit as fit
from cdiffeq import implicit as implicit
from cdiffeq import interop as interop
from cdiffeq import linalg as linalg
from cdiffeq import nn as nn
from cdiffeq import ode as ode
from cdiffeq import plot as plot
from cdiffeq import schrodinger as schrodinger
from cdiffeq import testing as testing
from cdiffeq import wirtinger as wirtinger
from cdiffeq.schrodinger import Chebyshev as Chebyshev
from cdiffeq.schrodinger import CrankNicolson as CrankNicolson
from cdiffeq.schrodinger import Exponential as Exponential
from cdiffeq.schrodinger import Hamiltonian as Hamiltonian
from cdiffeq.schrodinger import Krylov as Krylov
from cdiffeq.schrodinger import Magnus as Magnus
from cdiffeq.schrodinger import Result as Result
from cdiffeq.schrodinger import SplitOperator as SplitOperator
from cdiffeq.schrodinger import constant as constant
from cdiffeq.schrodinger import mcsolve as mcsolve
from cdiffeq.schrodinger import mesolve as mesolve
from cdiffeq.schrodinger import modes as modes
from cdiffeq.schrodinger import modulated as modulated
from cdiffeq.schrodinger import propagator as propagator
from cdiffeq.schrodinger import pwc as pwc
from cdiffeq.schrodinger import sesolve as sesolve
from cdiffeq.schrodinger import spin_chain as spin_chain
from cdiffeq.schrodinger import steadystate as steadystate
from cdiffeq.schrodinger import timecallable as timecallable

__version__ = "0.1.0"
