"""The calculus: derivatives of functions of complex variables, and rules for solvers."""

from cdiffeq.wirtinger._conventions import convert_gradient as convert_gradient
from cdiffeq.wirtinger._conventions import grad as grad
from cdiffeq.wirtinger._derivatives import derivatives as derivatives
from cdiffeq.wirtinger._linear_map import linear_map as linear_map
from cdiffeq.wirtinger._rule import adjoint_rule as adjoint_rule
