import numpy as np
import pytest

from adaface.metrics.dependence import Identities


def slow_variance(residuals, identities):
    """All products of two observations that share somebody."""
    people = np.unique(identities)
    total = sum(
        a * b
        for a, of_a in zip(residuals, identities, strict=True)
        for b, of_b in zip(residuals, identities, strict=True)
        if set(np.atleast_1d(of_a)) & set(np.atleast_1d(of_b))
    )
    return total * len(people) / (len(people) - 1)


@pytest.mark.parametrize("columns", [1, 2])
def test_the_variance_is_that_of_all_products_that_share_somebody(columns):
    generator = np.random.default_rng(0)
    identities = generator.integers(6, size=(40, columns))  # many couples occur twice, some pairs show one person
    residuals = generator.standard_normal(40) + identities[:, 0]
    residuals -= residuals.mean()
    who = identities[:, 0] if columns == 1 else identities
    expected = slow_variance(residuals, who)
    lowest = residuals @ residuals
    assert expected > lowest
    assert Identities(who).variance_of_sum(residuals) == pytest.approx(expected)
    widening = (2.5706 / 1.95996) ** 2  # Student's quantile for 5 degrees of freedom
    assert Identities(who).design_effect(residuals) == pytest.approx(widening * expected / lowest, rel=1e-4)


def test_it_is_not_below_that_of_independent_observations():
    residuals = np.array([1.0, -1.0, 2.0, -2.0])  # each person's add up to nothing
    assert Identities(np.array(["a", "a", "b", "b"])).variance_of_sum(residuals) == 10
    assert Identities(np.arange(2)).design_effect(np.zeros(2)) == 1


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"identities of shape \(4, 3\), expected \(N,\), or \(N, 2\)"):
        Identities(np.zeros((4, 3)))
