"Ridge probes: the weights and the penalty of scikit-learn, for few states and for many."
import numpy as np
import pytest
import torch

from tokenscope.measure.probes import RidgeProbe


@pytest.mark.parametrize("n, d", [(60, 8), (31, 30), (30, 30), (12, 40), (6, 9), (2, 1)])
@pytest.mark.parametrize("size, far", [(0.1, 1), (1, 1), (30, 10)], ids=["small", "one", "a token far out"])
def test_the_same_as_scikit_learn(n, d, size, far):
    from sklearn.linear_model import RidgeCV
    dice = np.random.default_rng(n)
    X, noise = dice.standard_normal((n, d)) * size, dice.standard_normal(n)
    X[0] *= far
    for y in (X @ dice.standard_normal(d) + noise, noise, np.arange(n)):
        ours, theirs = RidgeProbe().fit(X, y), RidgeCV(alphas=RidgeProbe().alphas).fit(X, y.astype(float))
        if n > 2:  # two points leave each other out alike at any penalty
            assert ours.alpha == pytest.approx(theirs.alpha_)
            np.testing.assert_allclose(ours.weights, theirs.coef_, rtol=1e-4, atol=1e-6 * np.abs(theirs.coef_).max())
            assert ours.bias == pytest.approx(theirs.intercept_, rel=1e-4, abs=1e-5 * np.abs(y).max())
        assert np.isfinite(ours.predict(X)).all()


def test_states_that_do_not_differ_are_read_as_the_mean():
    for n, d in ((9, 3), (3, 9)):
        probe = RidgeProbe().fit(torch.ones(n, d), np.arange(n))
        assert not probe.weights.any() and probe.bias == pytest.approx((n - 1) / 2)
