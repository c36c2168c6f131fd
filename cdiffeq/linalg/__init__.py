"""Linear algebra with adjoint rules for complex numbers."""

from cdiffeq.linalg._expm import expm as expm
from cdiffeq.linalg._lu import LU as LU
from cdiffeq.linalg._operator import Operator as Operator
from cdiffeq.linalg._solve import Factorization as Factorization
from cdiffeq.linalg._solve import factorize as factorize
from cdiffeq.linalg._solve import solve as solve
from cdiffeq.linalg._solver import Solver as Solver
