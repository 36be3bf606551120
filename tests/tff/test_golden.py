"""Every model of the zoo makes the same of the same weights under TensorFlow 2.14 and Keras 2.14, and learns the same from it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import golden

pytestmark = pytest.mark.tff


@pytest.mark.parametrize("name", golden.NAMES)
def test_layout_outputs_and_a_step_are_those_of_keras_3(name: str, tf: Any) -> None:
    from fedrho.models.flat import FlatModel
    from fedrho.models.zoo import lookup

    golden.assert_same(golden.measured(FlatModel(lookup(name))), golden.known(name))
