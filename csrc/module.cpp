// The Python binding: addresses and sizes in, nothing allocated, the GIL released. kernels/cpu.py checks the arguments.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <time.h>

#include <atomic>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/contract.h"
#include "count.h"
#include "cpu.h"
#include "engine/binding.h"
#include "gram/contract.h"
#include "linear_bf16/contract.h"
#include "linear_w8a8/contract.h"
#include "linear_wna16/contract.h"
#include "norm/contract.h"
#include "parallel.h"
#include "peak_int8/contract.h"
#include "quantize_rows/contract.h"
#include "rows/contract.h"
#include "share.h"
#include "sizes.h"

namespace nb = nanobind;

namespace {

// Multiply-adds that repay waking one more thread. Two threads broke even with one at 5 to 9 million in all with AMX,
// earlier with slower instruction sets.
constexpr size_t kWorthAThread = 1 << 21;
constexpr size_t kRowGrain = 32, kBlockGrain = 4;
// Of the Gram matrix: column blocks that one thread packs at least, and rows of a pass.
constexpr size_t kPackGrain = 2, kPassRows = 4 * kRun;

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Scratch of one linear call: codes [M16, code_stride] u8, scale [M16] f32, zero_point [M16] i32.
size_t scratch_bytes(size_t m, size_t k) {
    return round_up(m, kBlock) * (code_stride(k) + sizeof(float) + sizeof(int32_t));
}

int useful_threads(int threads, size_t multiply_adds) {
    const size_t useful = multiply_adds / kWorthAThread;
    return useful < 1 ? 1 : size_t(threads) < useful ? threads : int(useful);
}

void quantize_rows(int isa, uintptr_t x, bool bf16, size_t x_stride, size_t m, size_t k, uintptr_t shift,
                   uintptr_t multiplier, int mode, float static_scale, int static_zero_point, int code_min,
                   uintptr_t codes, size_t stride, uintptr_t scale, uintptr_t zero_point, size_t row_begin) {
    const QuantizeRows op{at<void>(x),        bf16,
                          x_stride,           k,
                          at<float>(shift),   at<float>(multiplier),
                          at<uint8_t>(codes), stride,
                          at<float>(scale),   at<int32_t>(zero_point),
                          QuantizeMode(mode), static_scale,
                          static_zero_point,  code_min};
    quantize_rows_for(isa)(&op, row_begin, m);
}

// Quantize the rows of x and multiply; x and y are f32, or both bf16. In one parallel region: by rows when there are
// enough of them, else by columns.
void linear_w8a8(int isa, int threads, uintptr_t x, bool bf16, size_t x_stride, size_t m, size_t k, uintptr_t shift,
                 uintptr_t multiplier, int mode, float static_scale, int static_zero_point, int code_min,
                 uintptr_t scratch, uintptr_t weight, uintptr_t colsum, uintptr_t scale_n, uintptr_t bias, uintptr_t y,
                 size_t n, bool gelu) {
    const size_t stride = code_stride(k), rows = round_up(m, kBlock), blocks = round_up(n, kBlock) / kBlock;
    uint8_t* codes = at<uint8_t>(scratch);
    float* scale_m = reinterpret_cast<float*>(codes + rows * stride);
    int32_t* zero_m = reinterpret_cast<int32_t*>(scale_m + rows);
    const QuantizeRows quantize{at<void>(x),
                                bf16,
                                x_stride,
                                k,
                                at<float>(shift),
                                at<float>(multiplier),
                                codes,
                                stride,
                                scale_m,
                                zero_m,
                                QuantizeMode(mode),
                                static_scale,
                                static_zero_point,
                                code_min};
    const LinearW8A8 multiply{codes,
                              stride,
                              scale_m,
                              zero_m,
                              at<int8_t>(weight),
                              at<int32_t>(colsum),
                              at<float>(scale_n),
                              at<float>(bias),
                              at<void>(y),
                              nullptr,
                              n,
                              n,
                              round_up(k, kPadK),
                              gelu,
                              bf16,
                              nullptr};
    const QuantizeRowsFn quantize_fn = quantize_rows_for(isa);
    const LinearW8A8Fn multiply_fn = linear_w8a8_for(isa);
    ++integer_linears;
    threads = useful_threads(threads, m * n * k);
    const bool by_rows = m >= kRowGrain * size_t(threads);
    parallel(threads, [&](int index, int count) {
        if (by_rows) {
            const Share mine = share_of(m, kRowGrain, index, count);
            quantize_fn(&quantize, mine.begin, mine.end);
            multiply_fn(&multiply, mine.begin, mine.end, 0, blocks);
        } else {
            const Share mine = share_of(m, 1, index, count);
            quantize_fn(&quantize, mine.begin, mine.end);
            if (count > 1) barrier();
            const Share columns = share_of(blocks, kBlockGrain, index, count);
            multiply_fn(&multiply, 0, m, columns.begin, columns.end);
        }
    });
}

// shift, multiplier, scale, zero point, least code of a static grid
using GridTuple = std::tuple<uintptr_t, uintptr_t, float, int, int>;

// A variant of an operator that has more of them than there are instruction sets.
template <class Fn>
struct Variant {
    const char* name;
    Fn fn;
    bool supported;
};

// variant(0), variant(1), ...: best last, (name, supported).
template <class Fn>
std::vector<std::pair<std::string, bool>> variant_table(Variant<Fn> variant(int), int count) {
    std::vector<std::pair<std::string, bool>> table;
    for (int i = 0; i < count; ++i) table.emplace_back(variant(i).name, variant(i).supported);
    return table;
}

constexpr int kW8A8Variants = 5, kAttentionVariants = 5;

Variant<LinearW8A8Fn> w8a8_variant(int index) {
    const Variant<LinearW8A8Fn> variants[kW8A8Variants] = {
        {"scalar", linear_w8a8_scalar, true},
        {"avx2", linear_w8a8_avx2, isa_supported(kAvx2)},
        {"avxvnni", linear_w8a8_avxvnni, has_avx_vnni()},
        {"avx512vnni", linear_w8a8_avx512vnni, isa_supported(kAvx512Vnni)},
        {"amx", linear_w8a8_amx, isa_supported(kAmx)},
    };
    return variants[index];
}

// The multiplication alone on one thread, rows [row_begin, row_end) of column blocks [block_begin, block_end).
// With sums = 0 the output is y with its epilogue, else the int32 sums. With a grid, y gets codes.
void multiply_w8a8(int variant, uintptr_t codes, size_t stride, uintptr_t scale_m, uintptr_t zero_m, size_t k,
                   uintptr_t weight, uintptr_t colsum, uintptr_t scale_n, uintptr_t bias, uintptr_t y, uintptr_t sums,
                   size_t out_stride, size_t n, bool gelu, bool bf16, std::optional<GridTuple> grid, size_t row_begin,
                   size_t row_end, size_t block_begin, size_t block_end) {
    OutputGrid codes_of_y{};
    if (grid) {
        const auto [shift, multiplier, scale, zero_point, code_min] = *grid;
        codes_of_y = {at<float>(shift), at<float>(multiplier), scale, zero_point, code_min};
    }
    const LinearW8A8 op{at<uint8_t>(codes),
                        stride,
                        at<float>(scale_m),
                        at<int32_t>(zero_m),
                        at<int8_t>(weight),
                        at<int32_t>(colsum),
                        at<float>(scale_n),
                        at<float>(bias),
                        at<void>(y),
                        at<int32_t>(sums),
                        out_stride,
                        n,
                        round_up(k, kPadK),
                        gelu,
                        bf16,
                        grid ? &codes_of_y : nullptr};
    w8a8_variant(variant).fn(&op, row_begin, row_end, block_begin, block_end);
}

// On one thread, rows [row_begin, row_end) of column blocks [block_begin, block_end). With `widen` as on a processor
// without vdpbf16ps.
void linear_bf16(int isa, bool widen, uintptr_t x, size_t x_stride, size_t k, uintptr_t weight, uintptr_t bias,
                 uintptr_t y, size_t out_stride, size_t n, bool gelu, bool bf16, size_t row_begin, size_t row_end,
                 size_t block_begin, size_t block_end) {
    const LinearBf16 op{at<uint16_t>(x),
                        x_stride,
                        at<uint16_t>(weight),
                        at<float>(bias),
                        at<void>(y),
                        out_stride,
                        n,
                        round_up(k, 32),
                        gelu,
                        bf16};
    const LinearBf16Fn fn = widen && isa == kAvx512Vnni ? linear_bf16_avx512vnni : linear_bf16_for(isa);
    fn(&op, row_begin, row_end, block_begin, block_end);
}

// A panel of a weight in 4 bits, or in 8 if levels is 0.
void unpack_wna16(int isa, uintptr_t codes, uintptr_t levels, uintptr_t scale, uintptr_t zero, size_t k, size_t group,
                  size_t block, size_t count, uintptr_t panel) {
    const Wna16 weight{at<uint8_t>(codes), at<float>(levels), at<float>(scale), at<int8_t>(zero), k, group};
    unpack_wna16_for(isa)(&weight, block, count, at<uint16_t>(panel));
}

// As linear_bf16.
void multiply_wna16(int isa, uintptr_t x, size_t x_stride, size_t k, uintptr_t codes, uintptr_t levels, uintptr_t scale,
                    uintptr_t zero, size_t group, uintptr_t bias, uintptr_t y, size_t out_stride, size_t n, bool gelu,
                    bool bf16, uintptr_t scratch, size_t row_begin, size_t row_end, size_t block_begin,
                    size_t block_end) {
    const LinearWna16 op{
        {at<uint16_t>(x), x_stride, nullptr, at<float>(bias), at<void>(y), out_stride, n, round_up(k, 32), gelu, bf16},
        {at<uint8_t>(codes), at<float>(levels), at<float>(scale), at<int8_t>(zero), k, group}};
    linear_wna16(isa, &op, row_begin, row_end, block_begin, block_end, at<void>(scratch));
}

Variant<AttentionFn> attention_variant(int index) {
    const bool avx512 = isa_supported(kAvx512Vnni), bf16 = avx512 && has_avx512_bf16();
    const Variant<AttentionFn> variants[kAttentionVariants] = {
        {"scalar", attention_scalar, true},
        {"avx2", attention_avx2, isa_supported(kAvx2)},
        {"avx512vnni", attention_avx512vnni, avx512},
        {"avx512bf16", attention_avx512bf16, bf16},
        {"amx", attention_amx, bf16 && isa_supported(kAmx) && has_amx_bf16()},
    };
    return variants[index];
}

// One sequence on one thread: queries [query_begin, query_end) of heads [head_begin, head_end). bias may be 0; a window
// below 0 is none.
void attention(int variant, uintptr_t q, uintptr_t k, uintptr_t v, size_t stride, uintptr_t out, size_t out_stride,
               size_t tokens, size_t head_size, float scale, uintptr_t bias, size_t bias_stride,
               ptrdiff_t bias_query_step, int64_t window, uintptr_t scratch, size_t head_begin, size_t head_end,
               size_t query_begin, size_t query_end) {
    const Attention op{at<uint16_t>(q),
                       at<uint16_t>(k),
                       at<uint16_t>(v),
                       stride,
                       at<uint16_t>(out),
                       out_stride,
                       tokens,
                       head_size,
                       scale,
                       at<float>(bias),
                       bias_stride,
                       bias_query_step,
                       window < 0 ? kNoWindow : size_t(window)};
    attention_variant(variant).fn(&op, head_begin, head_end, query_begin, query_end, at<void>(scratch));
}

// Scratch of one Gram call: a pass of packed rows.
size_t gram_scratch_bytes(size_t m, size_t k) {
    return round_up(m < kPassRows ? m : kPassRows, kSquare) * round_up(k, kSquare) * sizeof(uint16_t);
}

bool has_gram(int isa) { return gram_for(isa) != nullptr; }

// Add the rows of x to the Gram matrix, and what its features are to the rest; pass by pass, so that the scratch is
// small. Threads share a pass's columns, then its squares.
void add_gram(int isa, int threads, uintptr_t x, bool bf16, size_t x_stride, size_t m, size_t k, uintptr_t scratch,
              uintptr_t low, uintptr_t high, uintptr_t sum, uintptr_t sum_abs, uintptr_t gram) {
    const GramVariant variant = *gram_for(isa);
    const size_t squares = gram_squares(k), blocks = gram_panels(k) * (kSquare / kColumns);
    threads = useful_threads(threads, m * squares * kSquare * kSquare);
    parallel(threads, [&](int index, int count) {
        const Share columns = share_of(blocks, kPackGrain, index, count);
        const Share mine = share_of(squares, 1, index, count);
        for (size_t begin = 0; begin < m; begin += kPassRows) {
            if (begin > 0 && count > 1) barrier();
            const size_t rows = m - begin < kPassRows ? m - begin : kPassRows;
            const Gram pass{at<char>(x) + begin * x_stride * (bf16 ? 2 : 4),
                            bf16,
                            x_stride,
                            rows,
                            k,
                            at<uint16_t>(scratch),
                            at<float>(low),
                            at<float>(high),
                            at<double>(sum),
                            at<double>(sum_abs),
                            at<float>(gram)};
            variant.pack(&pass, columns.begin, columns.end);
            if (count > 1) barrier();
            variant.multiply(&pass, mine.begin, mine.end);
        }
    });
}

// residual, sum and bias may be 0.
void norm(int isa, uintptr_t x, uintptr_t residual, uintptr_t sum, uintptr_t y, uintptr_t weight, uintptr_t bias,
          size_t stride, size_t n, float eps, size_t row_begin, size_t row_end) {
    const Norm op{
        at<float>(x), at<float>(residual), at<float>(sum), at<float>(y), at<float>(weight), at<float>(bias), stride, n,
        eps};
    norm_for(isa)(&op, row_begin, row_end);
}

// One row of each of the engine's elementwise operators.
void embed_row(int isa, uintptr_t word, int kind, float scale, uintptr_t position, uintptr_t type, uintptr_t y,
               size_t n) {
    rows_for(isa).embed({at<void>(word), WordKind(kind), scale, at<float>(position), at<float>(type)}, at<float>(y), n);
}

void round_row(int isa, uintptr_t x, uintptr_t y, size_t n) { rows_for(isa).round(at<float>(x), at<uint16_t>(y), n); }

void activate_row(int isa, uintptr_t x, bool bf16, int function, size_t n) {
    const RowOperators& rows = rows_for(isa);
    if (bf16) return rows.activate_bf16(at<uint16_t>(x), Function(function), n);
    rows.activate(at<float>(x), Function(function), n);
}

void gate_row(int isa, uintptr_t a, uintptr_t b, uintptr_t y, size_t n) {
    rows_for(isa).gate(at<uint16_t>(a), at<uint16_t>(b), at<uint16_t>(y), n);
}

void rotate_row(int isa, uintptr_t x, size_t heads, size_t head_size, uintptr_t cos, uintptr_t sin) {
    rows_for(isa).rotate(at<uint16_t>(x), heads, head_size, at<float>(cos), at<float>(sin));
}

double thread_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

// int8 operations per nanosecond of one core over `repeats` rounds of its multiply-add; 0 where there is no such loop.
double peak_int8_gops(int isa, uint64_t repeats) {
    using Fn = uint64_t (*)(uint64_t);
    const Fn loops[kIsaCount] = {nullptr, has_avx_vnni() ? peak_int8_avxvnni : peak_int8_avx2, peak_int8_avx512vnni,
                                 peak_int8_amx};
    if (!loops[isa] || !isa_supported(Isa(isa))) return 0.0;
    const double start = thread_nanoseconds();
    const uint64_t operations = loops[isa](repeats);
    return double(operations) / (thread_nanoseconds() - start);
}

}  // namespace

NB_MODULE(_native, m) {
    const nb::call_guard<nb::gil_scoped_release> released;
    m.def("isas", [] {
        std::vector<std::pair<std::string, bool>> table;  // best last: (name, supported)
        for (int isa = 0; isa < kIsaCount; ++isa) table.emplace_back(kIsaNames[isa], isa_supported(Isa(isa)));
        return table;
    });
    m.def("cpu_features", [] {
        std::vector<std::pair<std::string, bool>> table;
        for (const CpuFeature* f = cpu_features(); f->name; ++f) table.emplace_back(f->name, f->present);
        return table;
    });
    m.def("kernel_calls", [] { return integer_linears.load(); });
    m.def("max_threads", [] { return omp_get_max_threads(); });
    m.def("code_stride", &code_stride);
    m.def("scratch_bytes", &scratch_bytes);
    m.def("w8a8_variants", [] { return variant_table(w8a8_variant, kW8A8Variants); });
    m.def("attention_variants", [] { return variant_table(attention_variant, kAttentionVariants); });
    m.def("attention_scratch_bytes", &attention_scratch_bytes);
    m.def("attention", &attention, released);
    m.def("quantize_rows", &quantize_rows, released);
    m.def("linear_w8a8", &linear_w8a8, released);
    m.def("multiply_w8a8", &multiply_w8a8, released);
    m.def("linear_bf16", &linear_bf16, released);
    m.def("wna16_scratch_bytes", &wna16_scratch_bytes);
    m.def("unpack_wna16", &unpack_wna16, released);
    m.def("linear_wna16", &multiply_wna16, released);
    m.def("gram_scratch_bytes", &gram_scratch_bytes);
    m.def("has_gram", &has_gram);
    m.def("add_gram", &add_gram, released);
    m.def("norm", &norm, released);
    m.def("embed_row", &embed_row, released);
    m.def("round_row", &round_row, released);
    m.def("activate_row", &activate_row, released);
    m.def("gate_row", &gate_row, released);
    m.def("rotate_row", &rotate_row, released);
    m.def("peak_int8_gops", &peak_int8_gops, released);
    bind_engine(m);
}
