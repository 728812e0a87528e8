// Random operands as the contracts want them.
#pragma once
#include <math.h>

#include "attention_cached/contract.h"
#include "exact.h"
#include "linear_w4a8/contract.h"
#include "linear_wna16/contract.h"
#include "sizes.h"

// Nearly the nearest bf16.
inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x8000) >> 16);
}

template <class T>
Exact bytes(Random& random, size_t count, size_t grain = sizeof(T)) {
    Exact out = room<T>(random, count, grain);
    for (size_t i = 0; i < count; ++i) *out.at<T>(i) = T(random.bits());
    return out;
}

inline Exact floats(Random& random, size_t count, float deviation, float mean = 0.0f, size_t grain = sizeof(float)) {
    Exact out = room<float>(random, count, grain);
    for (size_t i = 0; i < count; ++i) *out.at<float>(i) = mean + random.normal(deviation);
    return out;
}

inline Exact bf16s(Random& random, size_t count, float deviation, size_t grain = sizeof(uint16_t)) {
    Exact out = room<uint16_t>(random, count, grain);
    for (size_t i = 0; i < count; ++i) *out.at<uint16_t>(i) = narrow(random.normal(deviation));
    return out;
}

inline CacheKind random_cache_kind(Random& random) {
    static constexpr CacheKind kinds[] = {CacheKind::kInt8, CacheKind::kInt4, CacheKind::kBf16};
    return kinds[random.between(0, 2)];
}

// A weight in the packed layout of the linears, of `group` values of K to a word of 32 bits; zero where padded.
// make() gives a value.
template <class T, class Make>
Exact packed(Random& random, size_t n, size_t k, size_t k_padded, Make make) {
    constexpr size_t group = 4 / sizeof(T);
    Exact out = room<T>(random, round_up(n, 16) * k_padded, 64);
    memset(out.at<T>(), 0, out.bytes());
    for (size_t row = 0; row < n; ++row) {
        for (size_t i = 0; i < k; ++i) {
            *out.at<T>((row / 16 * k_padded + i / group * group) * 16 + row % 16 * group + i % group) = make();
        }
    }
    return out;
}

// What linear_w8a8 takes beside codes.
struct Int8Weight {
    Exact weight, colsum, scale, bias;

    Int8Weight(Random& random, size_t n, size_t k)
        : weight(
              packed<int8_t>(random, n, k, round_up(k, 64), [&] { return int8_t(int(random.between(0, 254)) - 127); })),
          colsum(room<int32_t>(random, round_up(n, 16), 64)),
          scale(floats(random, round_up(n, 16), 0.0f, 0.005f / sqrtf(float(k)), 64)),
          bias(floats(random, round_up(n, 16), 0.1f, 0.0f, 64)) {
        const size_t k_padded = round_up(k, 64);
        for (size_t row = 0; row < round_up(n, 16); ++row) {
            int32_t sum = 0;
            for (size_t i = 0; i < k_padded; ++i) {
                sum += *weight.at<int8_t>((row / 16 * k_padded + i / 4 * 4) * 16 + row % 16 * 4 + i % 4);
            }
            *colsum.at<int32_t>(row) = sum;
        }
    }
};

struct Bf16Weight {
    Exact weight, bias;

    Bf16Weight(Random& random, size_t n, size_t k)
        : weight(packed<uint16_t>(random, n, k, round_up(k, 32),
                                  [&] { return narrow(random.normal(0.5f / sqrtf(float(k)))); })),
          bias(floats(random, round_up(n, 16), 0.1f, 0.0f, 64)) {}
};

// What linear_wna16 takes beside x. group: 0 for K.
struct WnaWeight {
    Exact codes, levels, scale, zero, bias;
    Wna16 weight;

    WnaWeight(Random& random, size_t n, size_t k, bool four_bits, size_t group)
        : codes(bytes<uint8_t>(random, round_up(n, 16) * (four_bits ? round_up(k, 32) / 2 : round_up(k, 64)), 64)),
          levels(floats(random, 16, 4.0f, 0.0f, 64)),
          scale(floats(random, round_up(n, 16) * (group ? k / group : 1), 0.0f,
                       (four_bits ? 0.1f : 0.01f) / sqrtf(float(k)), 64)),
          zero(bytes<int8_t>(random, round_up(n, 16) * (group ? k / group : 1), 16)),
          bias(floats(random, round_up(n, 16), 0.1f, 0.0f, 64)),
          weight{.codes = codes.at<uint8_t>(),
                 .levels = four_bits ? levels.at<float>() : nullptr,
                 .scale = scale.at<float>(),
                 .zero = random.one_in(2) ? zero.at<int8_t>() : nullptr,
                 .k = k,
                 .group = group ? group : k} {
        const size_t groups = k / weight.group;
        for (size_t row = n; row < round_up(n, 16); ++row) {
            for (size_t g = 0; g < groups; ++g) *scale.at<float>((row / 16 * groups + g) * 16 + row % 16) = 0.0f;
        }
    }
};

// With such groups: whole words of 4 bits or fewer.
inline int random_bits(Random& random, size_t group, int fewest) {
    const int bits = int(random.between(fewest, 4));
    return group % (bits % 2 ? 32 : 16) ? 4 : bits;
}

// What linear_w4a8 takes beside codes, of `groups` groups of `group` values. K is any such product, so no group is odd.
struct Wna8Weight {
    int bits;
    Exact codes, levels, scale, zero, minimum, bias;
    Wna8 weight;

    Wna8Weight(Random& random, size_t n, size_t groups, size_t group, size_t per, bool bf16, int fewest_bits)
        : bits(random_bits(random, group, fewest_bits)),
          codes(bytes<uint8_t>(random, round_up(n, 16) * groups * group * bits / 8, 64)),
          levels(bytes<int8_t>(random, 16)),
          scale(bf16 ? bf16s(random, round_up(n, 16) * groups / per, 0.01f, 64)
                     : floats(random, round_up(n, 16) * groups / per, 0.01f, 0.0f, 64)),
          zero(bytes<uint8_t>(random, round_up(n, 16) * groups / per, 16)),
          minimum(bf16 ? bf16s(random, round_up(n, 16) * groups / per, 0.1f, 64)
                       : floats(random, round_up(n, 16) * groups / per, 0.1f, 0.0f, 64)),
          bias(floats(random, round_up(n, 16), 0.1f, 0.0f, 64)),
          weight{.codes = codes.at<uint8_t>(),
                 .bits = bits,
                 .levels = nullptr,
                 .scale = scale.at<void>(),
                 .bf16_scale = bf16,
                 .zero = nullptr,
                 .minimum = nullptr,
                 .k = groups * group,
                 .group = group,
                 .per = per} {
        const size_t offset = bits == 1 ? 0 : random.between(0, bits == 4 ? 3 : 2);
        for (size_t i = 0; i < zero.bytes(); ++i) *zero.at<uint8_t>(i) %= 129;  // what the contract allows
        if (offset == 1) weight.zero = zero.at<uint8_t>();
        if (offset == 2) weight.minimum = minimum.at<void>();
        if (offset == 3) weight.levels = levels.at<int8_t>();
    }
};

// Of K: a multiple of 8 that divides it, or 0 for all of it.
inline size_t random_group(Random& random, size_t k) {
    const size_t group = 8 * random.between(1, 16);
    return k % group ? 0 : group;
}

// Shift and multiplier of a grid, zero from `count` to `padded`.
struct Transform {
    Exact shift, multiplier;

    Transform(Random& random, size_t count, size_t padded)
        : shift(floats(random, padded, 0.1f)), multiplier(floats(random, padded, 0.1f, 1.0f)) {
        for (size_t i = count; i < padded; ++i) *shift.at<float>(i) = *multiplier.at<float>(i) = 0.0f;
    }
};
