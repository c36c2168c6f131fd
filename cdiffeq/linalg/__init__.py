"""Linear algebra with adjoint rules for complex numbers."""

from cdiffeq.linalg._banded import Banded as Banded
from cdiffeq.linalg._bicgstab import BiCGStab as BiCGStab
from cdiffeq.linalg._cg import CG as CG
from cdiffeq.linalg._cholesky_solver import Cholesky as Cholesky
from cdiffeq.linalg._diagonal import Diagonal as Diagonal
from cdiffeq.linalg._expm import expm as expm
from cdiffeq.linalg._gmres import GMRES as GMRES
from cdiffeq.linalg._ilu import ILU as ILU
from cdiffeq.linalg._lu import LU as LU
from cdiffeq.linalg._minres import MINRES as MINRES
from cdiffeq.linalg._operator import Operator as Operator
from cdiffeq.linalg._preconditioner import Jacobi as Jacobi
from cdiffeq.linalg._qr import QR as QR
from cdiffeq.linalg._solve import Factorization as Factorization
from cdiffeq.linalg._solve import factorize as factorize
from cdiffeq.linalg._solve import solve as solve
from cdiffeq.linalg._solver import Solver as Solver
from cdiffeq.linalg._sparse_direct import Sparse as Sparse
from cdiffeq.linalg._triangular import Triangular as Triangular
from cdiffeq.linalg._tridiagonal import Tridiagonal as Tridiagonal
