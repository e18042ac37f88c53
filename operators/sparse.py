"""Operators as sparse matrices: one product a direction, differentiable, on any device."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class SparseMatrix:
    """A sparse matrix and its transpose, each stored by rows: products of either are one pass through memory.

    :param rows: row of each entry, (K,) integers, in any order.
    :param columns: column of each entry.
    :param values: value of each entry; entries at the same place add up.
    :param shape: (R, C).
    """

    def __init__(self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]):
        coordinates = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, shape, check_invariants=False
        ).coalesce()
        self.shape = shape
        self.matrix = _by_rows(coordinates)
        self.transpose = _by_rows(coordinates.t().coalesce())

    def to(self, dtype: torch.dtype, device: torch.device) -> SparseMatrix:
        """The same matrix in another precision or on another device."""
        copy = object.__new__(SparseMatrix)
        copy.shape = self.shape
        copy.matrix, copy.transpose = self.matrix.to(device, dtype), self.transpose.to(device, dtype)
        return copy

    def forward(self, x: Tensor) -> Tensor:
        """Matrix times vectors, (..., C) to (..., R)."""
        return _Product.apply(x, self.matrix, self.transpose)

    def adjoint(self, y: Tensor) -> Tensor:
        """Transpose times vectors, (..., R) to (..., C)."""
        return _Product.apply(y, self.transpose, self.matrix)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, transpose):
        ctx.matrices = matrix, transpose
        vectors = x.detach().reshape(-1, x.shape[-1])
        # one vector is many times faster than a matrix of one column
        out = torch.mv(matrix, vectors[0]) if len(vectors) == 1 else torch.mm(matrix, vectors.T.contiguous()).T
        return out.reshape(*x.shape[:-1], matrix.shape[0])

    @staticmethod
    def backward(ctx, slope):
        matrix, transpose = ctx.matrices
        return _Product.apply(slope, transpose, matrix), None, None


def _by_rows(coordinates: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")  # PyTorch calls the layout a beta feature
        matrix = coordinates.to_sparse_csr()
        # products with 32-bit indices need no conversion
        indices = matrix.crow_indices().int(), matrix.col_indices().int()
        return torch.sparse_csr_tensor(*indices, matrix.values(), matrix.shape, check_invariants=False)
