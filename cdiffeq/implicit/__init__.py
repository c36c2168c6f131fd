"""Roots, fixed points and minima of complex functions, with derivatives by the implicit function theorem."""

from cdiffeq.implicit._anderson import Anderson as Anderson
from cdiffeq.implicit._broyden import Broyden as Broyden
from cdiffeq.implicit._fixed_point import fixed_point as fixed_point
from cdiffeq.implicit._minimise import minimise as minimise
from cdiffeq.implicit._newton import Newton as Newton
from cdiffeq.implicit._root import root as root
from cdiffeq.implicit._rule import Report as Report
