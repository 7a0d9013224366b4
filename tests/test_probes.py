"Ridge probes at their edges."
import numpy as np
import pytest
import torch

from tokenscope.measure.probes import RidgeProbe


def test_states_that_do_not_differ_are_read_as_the_mean():
    for n, d in ((9, 3), (3, 9)):
        probe = RidgeProbe().fit(torch.ones(n, d), np.arange(n))
        assert not probe.weights.any() and probe.bias == pytest.approx((n - 1) / 2)
