"""Adjoint rules of their own for solvers of complex-valued equations, in JAX."""

__version__ = "0.1.0"
