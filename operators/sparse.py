"""Operators as sparse matrices: one product a direction, differentiable, on any device."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from operators.operator import linear


class SparseMatrix:
    """A real sparse matrix, stored by rows, and by columns too where that is asked for and on other devices than CPUs.

    Products gather, by PyTorch; stored once, one with the transpose scatters, by SciPy, which is as fast for one
    vector, and slower for several.

    :param matrix: SciPy matrix or array in CSR format.
    :param twice: True to store it both ways.
    """

    def __init__(self, matrix: sparse.csr_matrix, device="cpu", *, twice: bool = False):
        self._scipy = matrix
        self._matrix = _csr(matrix).to(device)
        twice = twice or self._matrix.device.type != "cpu"
        self._transpose = _csr(matrix.T.tocsr()).to(device) if twice else None

    def to(self, dtype: torch.dtype, device: torch.device) -> SparseMatrix:
        """The same matrix in another precision or on another device."""
        numbers = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        return SparseMatrix(self._scipy.astype(numbers, copy=False), device)

    def __reduce__(self):
        return SparseMatrix, (self._scipy, self._matrix.device)  # PyTorch cannot copy its own layout

    def forward(self, x: Tensor) -> Tensor:
        """Matrix times vectors, (..., C) to (..., R)."""
        return linear(x, self._gather, self._scatter)

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose times vectors, (..., R) to (..., C)."""
        return linear(y, self._scatter, self._gather)

    def _gather(self, x: Tensor) -> Tensor:
        return _product(self._matrix, x)

    def _scatter(self, y: Tensor) -> Tensor:
        if self._transpose is not None:
            return _product(self._transpose, y)
        vectors = y.reshape(-1, y.shape[-1]).numpy()
        out = np.stack([self._scipy.T @ vector for vector in vectors])
        return torch.from_numpy(out).reshape(*y.shape[:-1], -1)


class MirroredMatrix:
    """A matrix whose second half is the first one mirrored in columns and rows: that one serves both, in one pass.

    :param half: the first half of the rows.
    :param mirror_columns: the map of vectors (..., C) that mirrors them, its own inverse.
    :param mirror_rows: the map of vectors (..., R / 2) to the order of the second half of the rows, its own inverse.
    """

    def __init__(self, half: SparseMatrix, mirror_columns: Callable, mirror_rows: Callable):
        self.half, self.mirror_columns, self.mirror_rows = half, mirror_columns, mirror_rows

    def forward(self, x: Tensor) -> Tensor:
        """Matrix times vectors, (..., C) to (..., R)."""
        first, second = self.half.forward(torch.stack([x, self.mirror_columns(x)], -2)).unbind(-2)
        return torch.cat([first, self.mirror_rows(second)], -1)

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose times vectors, (..., R) to (..., C)."""
        first, second = y.chunk(2, -1)
        x, mirrored = self.half.adjoint(torch.stack([first, self.mirror_rows(second)], -2)).unbind(-2)
        return x + self.mirror_columns(mirrored)


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    vectors = x.reshape(-1, x.shape[-1])
    # one vector is many times faster than a matrix of one column
    out = torch.mv(matrix, vectors[0]) if len(vectors) == 1 else torch.mm(matrix, vectors.T.contiguous()).T
    return out.reshape(*x.shape[:-1], -1)


def _csr(matrix: sparse.csr_matrix) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR")  # PyTorch calls the layout a beta feature
        # products with 32-bit indices need no conversion
        pointers, columns = (torch.from_numpy(a.astype(np.int32, copy=False)) for a in (matrix.indptr, matrix.indices))
        values = torch.from_numpy(matrix.data)
        return torch.sparse_csr_tensor(pointers, columns, values, matrix.shape, check_invariants=False)
