"""Linear algebra with adjoint rules for complex numbers."""

from cdiffeq.linalg._expm import expm as expm
