"""eSEN's edge frames for edges along the y axis, by which fairchem cannot differentiate.

Its frames are built from the angles of an edge about the y axis. Where an edge lies within 0.08° of it, fairchem takes
frame and edge direction for constants, and forces lose what turning that edge would do to the energy: bonds along a
lattice vector of a cubic crystal are such edges. Here these edges are turned away from the axis first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from e3nn import o3
from fairchem.core.models.esen.common.rotation import rotation_to_wigner, wigner_D

from dens_plugin.nn.edge_frames import edge_frames

Frames = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_NEAR = 0.99999  # cosine to the y axis, 0.26°: a wider cone than fairchem's, so that none of its edges is missed
_TURN = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]  # x to y, y to z, z to x


def wigner_of_turn(jd: Sequence[torch.Tensor]) -> torch.Tensor:
    """(L, L) the turn's matrix on spherical harmonics, from fairchem's constants of each degree up to lmax."""
    return rotation_to_wigner(jd[0].new_tensor([_TURN]), 0, len(jd) - 1, list(jd))[0]


def frames_without_waiting(vectors: torch.Tensor, jd: Sequence[torch.Tensor]) -> Frames:
    """fairchem's frames of edges by which it does not differentiate, from the same draws; a GPU is asked nothing.

    Args:
        vectors: (E, 3) of the edges, in Å.
        jd: fairchem's constants of each degree up to lmax.
    """
    with torch.no_grad():
        rotation = edge_frames(vectors)
        alpha, beta = o3.xyz_to_angles(rotation[:, :, 1])
        about = o3.angles_to_matrix(alpha, beta, torch.zeros_like(alpha)).mT @ rotation
        gamma = torch.atan2(about[:, 0, 2], about[:, 0, 0])
        wigner = vectors.new_zeros(len(vectors), len(jd) ** 2, len(jd) ** 2)
        for degree in range(len(jd)):
            place = slice(degree**2, (degree + 1) ** 2)
            wigner[:, place, place] = wigner_D(degree, alpha, beta, gamma, list(jd))
        return rotation, wigner, wigner.mT.contiguous()


def turned_at_poles(frames_of: Callable[[torch.Tensor], Frames], vectors: torch.Tensor, turn: torch.Tensor) -> Frames:
    r"""fairchem's frames, of which those of edges along the y axis are built elsewhere.

    .. math:: D(R) = D(R') \, D(P) \quad \text{with} \quad R' P r = |r| \, e_y

    Args:
        frames_of: fairchem's, from vectors (E, 3) to rotations (E, 3, 3) that turn them to y, their matrices (E, L, L)
            on spherical harmonics, and the inverses of these.
        vectors: (E, 3) of the edges, in Å.
        turn: of `wigner_of_turn`.
    """
    rotation, wigner, inverse = frames_of(vectors)
    polar = (vectors[:, 1].abs() > _NEAR * vectors.norm(dim=-1)).nonzero().view(-1)  # (P,)
    if len(polar) == 0:
        return rotation, wigner, inverse
    permutation = vectors.new_tensor(_TURN)
    elsewhere, its_wigner, _ = frames_of(vectors[polar] @ permutation.T)
    rotation = rotation.index_copy(0, polar, elsewhere @ permutation)
    wigner = wigner.index_copy(0, polar, its_wigner @ turn.to(wigner.dtype))
    return rotation, wigner, wigner.transpose(1, 2).contiguous()
