"""Initial value problems for any complex vector field, with a choice of adjoint methods."""

from cdiffeq.ode._backsolve import Backsolve as Backsolve
from cdiffeq.ode._discrete import Discrete as Discrete
from cdiffeq.ode._forward import ForwardSensitivity as ForwardSensitivity
from cdiffeq.ode._interpolated import Interpolated as Interpolated
from cdiffeq.ode._reversible import Reversible as Reversible
from cdiffeq.ode._solution import Solution as Solution
from cdiffeq.ode._solution import Stats as Stats
from cdiffeq.ode._solve import solve as solve
