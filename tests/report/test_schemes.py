"""Every scheme and method has words of its own, whoever adds one."""

import pytest

from bitwright.methods import METHODS
from bitwright.numerics.schemes import SCHEMES
from bitwright.report.schemes import method_note, method_words, rounds_inputs, scheme_tag, scheme_words


def test_different_schemes_have_different_words():
    words = {name: scheme_words(name) for name in SCHEMES}
    assert len(set(words.values())) == len(SCHEMES)
    assert not set(words.values()) & set(SCHEMES)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_words_tell_bits_and_activations(name):
    scheme, said = SCHEMES[name], scheme_words(name)
    assert rounds_inputs(name) == ("int8 activations" in said)
    if scheme.weight is None:
        assert scheme_tag(name) is None
    elif scheme.weight.grid == "uniform":
        assert said.startswith(f"int{scheme.weight.bits} weights")
        assert scheme_tag(name) == f"int{scheme.weight.bits}"
        assert ("zero points" in said) == (not scheme.weight.symmetric)
    else:
        assert name.startswith(scheme_tag(name))


def test_different_methods_have_different_words():
    words = {name: method_words(name) for name in METHODS}
    assert len(set(words.values())) == len(METHODS)
    assert all(method_note(name) == method.note for name, method in METHODS.items())


def test_a_range_that_the_recipe_names_is_told():
    assert method_words("gptq", "percentile") == "percentile ranges, GPTQ rounding"
    assert method_words("rtn", "min_max") == "rounded to nearest"


def test_what_a_later_release_knows_stays_readable():
    assert (scheme_words("w5a5"), method_words("brand_new"), method_note("brand_new")) == ("w5a5", "brand new", "")
    assert scheme_tag("w5a5") is None
