"""Layers of complex-valued models, some with a solve inside, in Equinox."""

from cdiffeq.nn._activations import cardioid as cardioid
from cdiffeq.nn._activations import modrelu as modrelu
from cdiffeq.nn._activations import zrelu as zrelu
from cdiffeq.nn._initialisation import glorot as glorot
from cdiffeq.nn._initialisation import he as he
from cdiffeq.nn._linear import Linear as Linear
from cdiffeq.nn._linear_solve import LinearSolveLayer as LinearSolveLayer
from cdiffeq.nn._neural_ode import NeuralODE as NeuralODE
from cdiffeq.nn._recurrence import linear_recurrence as linear_recurrence
from cdiffeq.nn._ssm import DiagonalSSM as DiagonalSSM
from cdiffeq.nn._unitary import UnitaryLayer as UnitaryLayer
