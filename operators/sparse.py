"""Operators as sparse matrices: one product a direction, differentiable, on any device."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from operators.operator import linear


class SparseMatrix:
    """A real sparse matrix, stored once, by rows.

    On the CPU a product with it gathers, by PyTorch, and one with its transpose scatters, by SciPy; both are one pass
    through its memory. Other devices hold the transpose as well.

    :param matrix: SciPy matrix or array in CSR format.
    """

    def __init__(self, matrix: sparse.csr_matrix, device="cpu"):
        self._scipy = matrix
        self._matrix = _csr(matrix).to(device)
        self._transpose = None if self._matrix.device.type == "cpu" else _csr(matrix.T.tocsr()).to(device)

    def to(self, dtype: torch.dtype, device: torch.device) -> SparseMatrix:
        """The same matrix in another precision or on another device."""
        numbers = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
        return SparseMatrix(self._scipy.astype(numbers, copy=False), device)

    def __reduce__(self):
        return SparseMatrix, (self._scipy, self._matrix.device)  # PyTorch cannot copy its own layout

    @property
    def bytes(self) -> int:
        """Memory of the entries."""
        return self._scipy.data.nbytes + self._scipy.indices.nbytes

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
