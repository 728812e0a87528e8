// A panel at a time: unpacked by the variant, then multiplied by linear_bf16 as any weight.
#include "dispatch.h"

#include "sizes.h"

namespace {

// Columns of a panel: many, since each panel reads all of x again, but no more than stay in L2 (as linear/amx.h has it
// of weights), and whole tiles of linear_bf16.
constexpr size_t kPanelBytes = 768 * 1024, kGrain = 4;

size_t block_bytes(size_t k) { return round_up(k, 32) * 16 * sizeof(uint16_t); }

size_t panel_blocks(size_t k) {
    const size_t blocks = kPanelBytes / block_bytes(k) / kGrain * kGrain;
    return blocks > kGrain ? blocks : kGrain;
}

constexpr Variant<UnpackWna16Fn*> kVariants[] = {
    {"avx512", Isa::kAvx512Vnni, unpack_wna16_avx512},
    {"avx2", Isa::kAvx2, unpack_wna16_avx2},
    {"scalar", Isa::kScalar, unpack_wna16_scalar},
};

}  // namespace

constinit const Variants<UnpackWna16Fn*> linear_wna16_variants = kVariants;

size_t wna16_scratch_bytes(size_t k) { return panel_blocks(k) * block_bytes(k); }

void linear_wna16(Isa isa, const LinearWna16* p, size_t row_begin, size_t row_end, size_t block_begin, size_t block_end,
                  void* scratch) {
    UnpackWna16Fn* unpack = best(linear_wna16_variants, isa);
    LinearBf16Fn* multiply = best(linear_bf16_variants, isa);
    const size_t most = panel_blocks(p->weight.k);
    for (size_t block = block_begin; block < block_end; block += most) {
        const size_t count = block_end - block < most ? block_end - block : most, column = block * 16;
        unpack(&p->weight, block, count, static_cast<uint16_t*>(scratch));
        LinearBf16 panel = p->linear;
        panel.weight = static_cast<uint16_t*>(scratch);
        panel.bias += column;
        panel.y =
            static_cast<char*>(panel.y) + column * (panel.output == Output::kBf16 ? sizeof(uint16_t) : sizeof(float));
        panel.n -= column;
        multiply(&panel, row_begin, row_end, 0, count);
    }
}
