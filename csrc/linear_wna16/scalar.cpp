// unpack_wna16, the definition in C++. See contract.h.
#include "blocks.h"
#include "vectors/bf16.h"

static float level(const Wna16& w, const uint8_t* word, size_t k) {
    return w.levels ? w.levels[word[k / 2] >> k % 2 * 4 & 15] : (float)(int8_t)word[k];
}

void unpack_wna16_scalar(const Wna16* p, size_t block, size_t count, uint16_t* panel) {
    const size_t values = p->levels ? 8 : 4;
    unpack_blocks(*p, block, count, panel, [&](const Group& g) {
        for (size_t k = 0; k < g.words * values; ++k) {
            for (size_t c = 0; c < kColumns; ++c) {
                const float zero = g.zero ? (float)g.zero[c] : 0.0f;
                const uint8_t* word = g.codes + (k / values * kColumns + c) * 4;
                g.panel[(k / 2 * kColumns + c) * 2 + k % 2] =
                    to_bf16((level(*p, word, k % values) - zero) * g.scale[c]);
            }
        }
    });
}
