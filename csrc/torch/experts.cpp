// A layer of experts as one operator of torch: torch.ops.bitwright.experts_*. Each token's row goes through the experts
// that the router chose for it, y = sum over them of weight * down(silu(gate(x)) * up(x)).
//
// The (token, choice) pairs are sorted by expert, so that an expert's rows lie side by side; every phase is shared out
// among the threads in pieces of one expert's columns. A token's sum is taken in the order of its choices: the same
// bits for every number of threads, and of tokens.
#include <atomic>
#include <vector>

#include "dispatch.h"
#include "linear_w8a8/count.h"
#include "threads/share.h"
#include "torch/register.h"
#include "torch/rows.h"
#include "vectors/bf16.h"

namespace {

// Column blocks that a thread takes at once.
constexpr size_t kPiece = 8;

// The weights of one linear of all experts, and how rows become its inputs.
struct Int8Experts {
    const int8_t* weight;
    const int32_t* colsum;
    const float *scale, *bias;
    size_t n, k;

    size_t columns() const { return round_up(n, kBlock); }
    size_t expert_bytes() const { return columns() * round_up(k, kPadK); }
    size_t row_bytes() const { return code_stride(k) + sizeof(float) + sizeof(int32_t); }

    // Codes, scales and zero points of `rows` rows, in memory of row_bytes() each, and 16 rows more.
    struct Inputs {
        uint8_t* codes;
        float* scale;
        int32_t* zero;
    };
    Inputs inputs(char* memory, size_t rows) const {
        float* scales = reinterpret_cast<float*>(memory + rows * code_stride(k));
        return {reinterpret_cast<uint8_t*>(memory), scales, reinterpret_cast<int32_t*>(scales + rows)};
    }
    void prepare(const Inputs& to, size_t row, const void* x, bool bf16) const {
        const QuantizeRows op{.x = x,
                              .bf16 = bf16,
                              .x_stride = k,
                              .k = k,
                              .shift = nullptr,
                              .multiplier = nullptr,
                              .codes = to.codes + row * code_stride(k),
                              .code_stride = code_stride(k),
                              .scale = to.scale + row,
                              .zero_point = to.zero + row,
                              .mode = QuantizeMode::kSymmetric,
                              .static_scale = 1,
                              .static_zero_point = 0,
                              .code_min = -127};
        best(quantize_rows_variants, active_isa())(&op, 0, 1);
    }
    void multiply(const Inputs& from, size_t expert, size_t first, size_t count, size_t begin, size_t end, void* y,
                  Output output) const {
        const LinearW8A8 op{.codes = from.codes + first * code_stride(k),
                            .code_stride = code_stride(k),
                            .scale_m = from.scale + first,
                            .zero_m = from.zero + first,
                            .weight = weight + expert * expert_bytes(),
                            .colsum = colsum + expert * columns(),
                            .scale_n = scale + expert * columns(),
                            .bias = bias + expert * columns(),
                            .y = y,
                            .out_stride = n,
                            .n = n,
                            .k_padded = round_up(k, kPadK),
                            .activation = Activation::kNone,
                            .output = output};
        best(linear_w8a8_variants, active_isa())(&op, 0, count, begin, end);
    }
};

struct GroupedExperts {
    Wna8 weight;  // of the first expert
    const float* bias;
    size_t n, k;

    size_t columns() const { return round_up(n, kBlock); }
    size_t groups() const { return k / weight.group; }
    size_t expert_bytes() const { return columns() * k * size_t(weight.bits) / 8; }
    size_t row_bytes() const { return code_stride(k) + groups() * (sizeof(float) + sizeof(int32_t)); }

    struct Inputs {
        int8_t* codes;
        float* scale;
        int32_t* sum;
    };
    Inputs inputs(char* memory, size_t rows) const {
        float* scales = reinterpret_cast<float*>(memory + rows * code_stride(k));
        return {reinterpret_cast<int8_t*>(memory), scales, reinterpret_cast<int32_t*>(scales + rows * groups())};
    }
    void prepare(const Inputs& to, size_t row, const void* x, bool bf16) const {
        const QuantizeGroups op{.x = x,
                                .bf16 = bf16,
                                .x_stride = k,
                                .k = k,
                                .group = weight.group,
                                .by_row = false,
                                .shift = nullptr,
                                .multiplier = nullptr,
                                .codes = to.codes + row * code_stride(k),
                                .code_stride = code_stride(k),
                                .scale = to.scale + row * groups(),
                                .sum = to.sum + row * groups(),
                                .group_stride = groups()};
        best(quantize_groups_variants, active_isa())(&op, 0, 1);
    }
    void multiply(const Inputs& from, size_t expert, size_t first, size_t count, size_t begin, size_t end, void* y,
                  Output output) const {
        const size_t held = expert * columns() * groups() / weight.per, width = weight.bf16_scale ? 2 : 4;
        Wna8 mine = weight;
        mine.codes += expert * expert_bytes();
        mine.scale = static_cast<const char*>(weight.scale) + held * width;
        if (mine.zero) mine.zero += held;
        const LinearW4A8 op{.codes = from.codes + first * code_stride(k),
                            .code_stride = code_stride(k),
                            .scale_m = from.scale + first * groups(),
                            .sum_m = from.sum + first * groups(),
                            .group_stride = groups(),
                            .weight = mine,
                            .bias = bias + expert * columns(),
                            .y = y,
                            .out_stride = n,
                            .n = n,
                            .activation = Activation::kNone,
                            .output = output};
        best(linear_w4a8_variants, active_isa())(&op, 0, count, begin, end);
    }
};

// Pairs of token and choice, sorted by expert: pair i of the sorted order is choice order[i] % choices of token
// order[i] / choices; those of expert e are [begin[e], begin[e + 1]).
struct Routes {
    std::vector<uint32_t> order, place, begin, active;
};

Routes routes_of(const int32_t* ids, size_t pairs, size_t experts) {
    Routes routes{std::vector<uint32_t>(pairs), std::vector<uint32_t>(pairs), std::vector<uint32_t>(experts + 1), {}};
    for (size_t i = 0; i < pairs; ++i) {
        if (ids[i] < 0 || size_t(ids[i]) >= experts) refuse("topk_ids name an expert that there is not");
        ++routes.begin[size_t(ids[i]) + 1];
    }
    for (size_t e = 0; e < experts; ++e) {
        if (routes.begin[e + 1]) routes.active.push_back(uint32_t(e));
        routes.begin[e + 1] += routes.begin[e];
    }
    std::vector<uint32_t> next(routes.begin.begin(), routes.begin.end() - 1);
    for (size_t i = 0; i < pairs; ++i) {
        routes.place[i] = next[size_t(ids[i])]++;
        routes.order[routes.place[i]] = uint32_t(i);
    }
    return routes;
}

// Pieces of all active experts' columns, taken in turn by whoever is free.
template <class Linear>
void multiply_all(const Linear& linear, const Routes& routes, const typename Linear::Inputs& from, char* y,
                  Output output, std::atomic<size_t>& next) {
    const size_t blocks = linear.columns() / kBlock, pieces = (blocks + kPiece - 1) / kPiece;
    const size_t width = output == Output::kBf16 ? 2 : 4;
    for (size_t i; (i = next.fetch_add(1)) < routes.active.size() * pieces;) {
        const size_t expert = routes.active[i / pieces], first = routes.begin[expert];
        const size_t begin = i % pieces * kPiece, end = least(blocks, begin + kPiece);
        linear.multiply(from, expert, first, routes.begin[expert + 1] - first, begin, end, y + first * linear.n * width,
                        output);
    }
}

template <class Linear>
Tensor experts(const Tensor& x, const Tensor& weights, const Tensor& ids, const Linear& up, const Linear& down,
               size_t count) {
    const Rows rows = rows_of(x);
    if (weights.type() != Type::kFloat32 || ids.type() != Type::kInt32 || ids.dim() != 2 || !weights.contiguous() ||
        !ids.contiguous() || ids.size(0) != x.size(0) || weights.count() != ids.count())
        refuse("topk_weights and topk_ids are float32 and int32 (M, choices)");
    if (up.k != rows.k || down.n != rows.k || up.n != 2 * down.k) refuse("the shapes of the experts do not fit x");
    const size_t choices = size_t(ids.size(1)), pairs = rows.m * choices, inner = down.k;
    Tensor y = Tensor::empty({int64_t(rows.m), int64_t(rows.k)}, rows.bf16 ? Type::kBFloat16 : Type::kFloat32);
    if (pairs == 0) return y;
    const Routes routes = routes_of(ids.data<int32_t>(), pairs, count);

    const size_t sixteen = pairs + kBlock;  // kernels read up to sixteen rows
    const size_t in_bytes = round_up(sixteen * std::max(up.row_bytes(), down.row_bytes()), 64);
    const size_t up_bytes = round_up(pairs * up.n * sizeof(uint16_t), 64);
    const int threads = threads_for(pairs, up.n, up.k, routes.active.size() * up.expert_bytes());
    const size_t gated_bytes = round_up(inner * sizeof(float), 64);
    char* memory = scratch(in_bytes + up_bytes + pairs * rows.k * sizeof(float) + size_t(threads) * gated_bytes);
    char* raised = memory + in_bytes;
    char* lowered = raised + up_bytes;
    char* gated = lowered + pairs * rows.k * sizeof(float);
    const auto in = up.inputs(memory, sixteen);
    const auto between = down.inputs(memory, sixteen);
    const RowOperators* by_row = best(rows_variants, active_isa());
    std::atomic<size_t> next_up{0}, next_down{0};
    integer_linears += 2 * routes.active.size();

    parallel(threads, [&](int index, int members) {
        Share mine = share_of(pairs, 1, size_t(index), size_t(members));
        const size_t width = rows.bf16 ? 2 : 4;
        for (size_t i = mine.begin; i < mine.end; ++i) {
            const size_t token = routes.order[i] / choices;
            up.prepare(in, i, static_cast<const char*>(rows.x) + token * rows.stride * width, rows.bf16);
        }
        if (members > 1) barrier();
        multiply_all(up, routes, in, raised, Output::kBf16, next_up);
        if (members > 1) barrier();
        float* mixed = reinterpret_cast<float*>(gated + size_t(index) * gated_bytes);
        for (size_t i = mine.begin; i < mine.end; ++i) {
            const uint16_t* both = reinterpret_cast<const uint16_t*>(raised) + i * up.n;
            by_row->gate(both, both + inner, Function::kSilu, mixed, inner);
            down.prepare(between, i, mixed, false);
        }
        if (members > 1) barrier();
        multiply_all(down, routes, between, lowered, Output::kF32, next_down);
        if (members > 1) barrier();
        const Share tokens = share_of(rows.m, 1, size_t(index), size_t(members));
        for (size_t t = tokens.begin; t < tokens.end; ++t) {
            for (size_t k = 0; k < rows.k; ++k) {
                float sum = 0;
                for (size_t c = 0; c < choices; ++c) {
                    const size_t i = t * choices + c;
                    sum += weights.data<float>()[i] *
                           reinterpret_cast<const float*>(lowered)[routes.place[i] * rows.k + k];
                }
                if (rows.bf16) {
                    y.data<uint16_t>()[t * rows.k + k] = to_bf16(sum);
                } else {
                    y.data<float>()[t * rows.k + k] = sum;
                }
            }
        }
    });
    return y;
}

// weight int8 (E, N/16, K/4, 16, 4), colsum, scale and bias (E, N padded to 16).
Int8Experts int8_of(const Tensor& weight, const Tensor& colsum, const Tensor& scale, const Tensor& bias, size_t n,
                    size_t k) {
    const size_t count = size_t(weight.size(0)), columns = count * round_up(n, kBlock);
    return {constant<int8_t>(weight, Type::kInt8, columns * round_up(k, kPadK), "weight: int8, packed, of all experts"),
            constant<int32_t>(colsum, Type::kInt32, columns, "colsum: int32, of all experts"),
            constant<float>(scale, Type::kFloat32, columns, "scale: float32, of all experts"),
            constant<float>(bias, Type::kFloat32, columns, "bias: float32, of all experts"),
            n,
            k};
}

Tensor experts_w8a8(const Tensor& x, const Tensor& weights, const Tensor& ids, const Tensor& up_weight,
                    const Tensor& up_colsum, const Tensor& up_scale, const Tensor& up_bias, const Tensor& down_weight,
                    const Tensor& down_colsum, const Tensor& down_scale, const Tensor& down_bias, int64_t inner) {
    const size_t k = size_t(x.size(x.dim() - 1)), width = size_t(inner);
    const Int8Experts up = int8_of(up_weight, up_colsum, up_scale, up_bias, 2 * width, k);
    const Int8Experts down = int8_of(down_weight, down_colsum, down_scale, down_bias, k, width);
    return experts(x, weights, ids, up, down, size_t(up_weight.size(0)));
}

GroupedExperts grouped_of(const Tensor& codes, const Tensor& scale, const Optional& zero, const Tensor& bias, size_t n,
                          size_t k, size_t bits, size_t group, size_t per) {
    const size_t count = size_t(codes.size(0)), columns = count * round_up(n, kBlock);
    if (!group || !per || k % (group * per)) refuse("groups that divide K");
    const Type scales = scale.type();
    if (scales != Type::kBFloat16 && scales != Type::kFloat32) refuse("scale: bfloat16 or float32");
    const size_t held = columns * (k / group / per), width = scales == Type::kBFloat16 ? 2 : 4;
    if (held / count * width % 64) refuse("the scales of an expert must fill multiples of 64 bytes: pass float32");
    return {{.codes = constant<uint8_t>(codes, Type::kUint8, columns * k * bits / 8, "codes: uint8, of all experts"),
             .bits = int(bits),
             .levels = nullptr,
             .scale = constant<void>(scale, scales, held, "scale: (E, N/16, G, 16)"),
             .bf16_scale = scales == Type::kBFloat16,
             .zero = constant<uint8_t>(zero, Type::kUint8, held, "zero: uint8 (E, N/16, G, 16)"),
             .minimum = nullptr,
             .k = k,
             .group = group,
             .per = per},
            constant<float>(bias, Type::kFloat32, columns, "bias: float32, of all experts"),
            n,
            k};
}

Tensor experts_wna8(const Tensor& x, const Tensor& weights, const Tensor& ids, const Tensor& up_codes,
                    const Tensor& up_scale, const Optional& up_zero, const Tensor& up_bias, const Tensor& down_codes,
                    const Tensor& down_scale, const Optional& down_zero, const Tensor& down_bias, int64_t inner,
                    int64_t bits, int64_t up_group, int64_t up_per, int64_t down_group, int64_t down_per) {
    const size_t k = size_t(x.size(x.dim() - 1)), width = size_t(inner), b = size_t(bits);
    const GroupedExperts up =
        grouped_of(up_codes, up_scale, up_zero, up_bias, 2 * width, k, b, size_t(up_group), size_t(up_per));
    const GroupedExperts down =
        grouped_of(down_codes, down_scale, down_zero, down_bias, k, width, b, size_t(down_group), size_t(down_per));
    return experts(x, weights, ids, up, down, size_t(up_codes.size(0)));
}

}  // namespace

void register_experts() {
    torch_abi::define<experts_w8a8>(
        "experts_w8a8(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor up_weight, Tensor up_colsum, "
        "Tensor up_scale, Tensor up_bias, Tensor down_weight, Tensor down_colsum, Tensor down_scale, "
        "Tensor down_bias, int inner) -> Tensor");
    torch_abi::define<experts_wna8>(
        "experts_wna8(Tensor x, Tensor topk_weights, Tensor topk_ids, Tensor up_codes, Tensor up_scale, "
        "Tensor? up_zero, Tensor up_bias, Tensor down_codes, Tensor down_scale, Tensor? down_zero, Tensor down_bias, "
        "int inner, int bits, int up_group, int up_per, int down_group, int down_per) -> Tensor");
}
