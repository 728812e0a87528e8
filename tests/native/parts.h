// How a kernel is run in parts, and its results compared.
#pragma once
#include <vector>

#include "exact.h"

inline void must_equal(const Exact& got, const Exact& want, const char* what, const char* detail) {
    if (!got.same(want)) fail(what, detail);
}

// Points in [0, total] at multiples of grain where a range is cut, from 0 to total.
inline std::vector<size_t> cuts(Random& random, size_t total, size_t grain) {
    std::vector<size_t> at = {0};
    while (at.back() < total) {
        const size_t next = at.back() + random.between(1, (total - at.back() + grain - 1) / grain) * grain;
        at.push_back(next < total ? next : total);
    }
    return at;
}

// compute(begin, end) over all parts of [0, total), the last first.
template <class Compute>
void in_parts(Random& random, size_t total, size_t grain, Compute compute) {
    const std::vector<size_t> at = cuts(random, total, grain);
    for (size_t part = at.size() - 1; part-- > 0;) compute(at[part], at[part + 1]);
}
