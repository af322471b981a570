"""Gradients that are far beyond all others."""

from impala_torch.learning.outliers import Norms


def told(values):
    norms, found = Norms(), []
    for update, value in enumerate(values, 1):
        if (one := norms.see(update, value)) is not None:
            found.append((update, *one))
    return found


def test_one_of_the_first_is_told_once_others_came():
    assert told([1e11] + [10.0] * 300) == [(10, 1, 1e11, 1e10)]


def test_a_later_one_is_told_at_once_and_each_once():
    values = [10.0] * 50 + [1e7] + [10.0] * 20 + [1e8, 1e9] + [10.0] * 200
    assert [one[:3] for one in told(values)] == [
        (51, 51, 1e7),
        (72, 72, 1e8),
        (73, 73, 1e9),
    ]


def test_what_stays_is_usual():
    assert [one[0] for one in told([10.0] * 60 + [1e8] * 300)] == list(range(61, 111))
    assert told([0.0] * 100 + [1.0] * 10) == []
    assert told([10.0**n for n in range(5)] * 10) == []
