"""Other frameworks and formats: PyTorch, TensorFlow, QuTiP, xarray. Each is imported when it is used."""

from cdiffeq.interop import qutip as qutip
from cdiffeq.interop import tensorflow as tensorflow
from cdiffeq.interop import torch as torch
from cdiffeq.interop import xarray as xarray
