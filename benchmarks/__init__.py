"""Comparisons of cdiffeq with other libraries on problems that all of them can solve.

`python -m benchmarks` runs them; `README.md` says what is measured and how.
"""
