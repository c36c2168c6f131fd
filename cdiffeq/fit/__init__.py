"""Fits of complex models: least squares with error bars, minimisation, and real vectors for other tools."""

from cdiffeq.fit._least_squares import least_squares as least_squares
from cdiffeq.fit._minimise import Minimum as Minimum
from cdiffeq.fit._minimise import minimise as minimise
from cdiffeq.fit._real import to_real as to_real
from cdiffeq.fit._result import Fit as Fit
