"""What is kept of logits: against torch's own definitions, and never more than a window of them."""

import math
import weakref

import numpy as np
import pytest
import torch

from bitwright.errors import DataError
from bitwright.evaluate import metrics
from bitwright.evaluate.logits import compare_windows, token_outputs

T, V = 300, 50  # more tokens than are reduced at once


@pytest.fixture
def ids():
    return tuple(np.random.default_rng(0).integers(0, V, T).tolist())


def logits_of(seed, scale=3.0):
    return scale * torch.randn(T, V, generator=torch.Generator().manual_seed(seed))


def test_outputs_are_cross_entropy_and_argmax_of_the_next_token(ids):
    logits = logits_of(1)
    kept = token_outputs(logits, ids)
    assert (kept.shape, kept.dtype) == ((2, T - 1), np.float32)
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), torch.tensor(ids[1:]), reduction="none")
    np.testing.assert_allclose(kept[0], expected.numpy(), rtol=1e-5)
    assert kept[1].tolist() == logits[:-1].argmax(dim=1).tolist()


def test_half_precision_logits_are_reduced_in_float32(ids):
    logits = logits_of(1).bfloat16()
    np.testing.assert_array_equal(token_outputs(logits, ids), token_outputs(logits.float(), ids))


def test_kl_is_that_of_the_two_distributions_token_by_token(ids):
    left, right = logits_of(1), logits_of(2)
    found = compare_windows([ids, ids[:7]], lambda some: left[: len(some)], lambda some: right[: len(some)])
    assert [len(kl) for kl in found.kl] == [T - 1, 6]
    for n, kl in ((T - 1, found.kl[0]), (6, found.kl[1])):
        assert kl.mean() == pytest.approx(metrics.kl(left[:n], right[:n]), rel=1e-5)
    assert found.mean_kl == pytest.approx(np.concatenate(found.kl).mean(dtype=np.float64))
    np.testing.assert_array_equal(found.float_outputs[0], token_outputs(left, ids))
    np.testing.assert_array_equal(found.quant_outputs[1], token_outputs(right[:7], ids[:7]))


def test_kl_of_equal_models_is_zero_also_with_tokens_that_are_impossible(ids):
    logits = logits_of(1)
    logits[:, 3] = -math.inf
    assert compare_windows([ids], lambda _: logits, lambda _: logits).mean_kl == 0


def test_kl_is_infinite_where_the_other_model_is_broken_or_excludes_what_can_come(ids):
    left, right = logits_of(1), logits_of(1)
    right[0], right[1, 5] = math.nan, -math.inf
    kl = compare_windows([ids], lambda _: left, lambda _: right).kl[0]
    assert np.isinf(kl).tolist() == [True, True] + [False] * (T - 3)


def test_only_one_window_of_logits_is_alive_at_a_time(ids):
    alive = {"float": weakref.WeakSet(), "quantized": weakref.WeakSet()}

    def model(name):
        def logits(some):
            assert not alive[name]
            made = logits_of(1)
            alive[name].add(made)
            return made

        return logits

    compare_windows([ids] * 3, model("float"), model("quantized"))


def test_progress_counts_windows(ids):
    seen = []
    compare_windows([ids] * 3, lambda _: logits_of(1), lambda _: logits_of(2), track=lambda w: seen.append(len(w)) or w)
    assert seen == [3]


def test_models_that_do_not_fit_are_refused(ids):
    with pytest.raises(DataError, match=r"\(300, 50\) in the float model, but \(300, 49\)"):
        compare_windows([ids], lambda _: logits_of(1), lambda _: logits_of(1)[:, :49])
    with pytest.raises(DataError, match=r"shape \(300, 50\) for 299 tokens"):
        token_outputs(logits_of(1), ids[1:])
