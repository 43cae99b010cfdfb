"""Figures of directions: norms and cosines are those of the vectors given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refusal_dial.common import DialError
from refusal_dial.report.steering import cosine_matrix, layer_cosines, norms_by_layer


def test_norms_stand_at_their_layers_with_the_activations_beside_them():
    figure = norms_by_layer({20: 3.0, 4: 1.0}, "t", {4: 9.0, 20: 16.0})
    assert [list(line.x) for line in figure.data] == [[4, 20], [4, 20]]
    assert [list(line.y) for line in figure.data] == [[1.0, 3.0], [9.0, 16.0]]
    assert len(norms_by_layer({4: 1.0}, "t").data) == 1
    with pytest.raises(DialError, match=r"no direction to draw.*direction\*\.safetensors"):
        norms_by_layer({}, "t")


def test_cosines_are_in_the_order_of_layers():
    e = np.eye(3)
    (heat,) = layer_cosines({9: e[0] * 2, 3: e[1], 5: -e[0]}, "t").data
    assert list(heat.x) == list(heat.y) == [3, 5, 9]
    np.testing.assert_allclose(heat.z, [[1, 0, 0], [0, 1, -1], [0, -1, 1]])


@given(arrays(float, (4, 6), elements=st.floats(0.5, 2)), st.floats(0.1, 10))
def test_a_cosine_knows_no_length(vectors, scale):
    table = cosine_matrix(list(vectors))
    np.testing.assert_allclose(np.diag(table), 1)
    np.testing.assert_allclose(table, cosine_matrix(list(vectors * scale)), atol=1e-12)
    assert (np.abs(table) <= 1).all()


def test_cosines_of_one_layer_or_of_two_models_are_refused():
    with pytest.raises(DialError, match=r"two or more directions, and here is 1.*--layer all"):
        layer_cosines({3: np.ones(4)}, "t")
    with pytest.raises(DialError, match=r"directions of different models: widths \[3, 4\]"):
        layer_cosines({3: np.ones(4), 4: np.ones(3)}, "t")
