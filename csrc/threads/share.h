// Cutting a range among threads.
#pragma once
#include <stddef.h>

struct Share {
    size_t begin, end;
};

// Part `index` of `count` of the range [0, total), cut at multiples of `grain`.
inline Share share_of(size_t total, size_t grain, size_t index, size_t count) {
    const size_t grains = (total + grain - 1) / grain;
    const size_t begin = grains * index / count * grain, end = grains * (index + 1) / count * grain;
    return {begin < total ? begin : total, end < total ? end : total};
}
