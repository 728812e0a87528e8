#include "binding.h"

#include <nanobind/stl/vector.h>

#include "dispatch.h"

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const RowOperators& rows_of(const char* variant) { return *kernel_of(rows_variants, variant); }

void embed_row(const char* variant, const EmbedRow& row, uintptr_t y, size_t n) {
    rows_of(variant).embed(row, at<float>(y), n);
}

void round_row(const char* variant, uintptr_t x, uintptr_t y, size_t n) {
    rows_of(variant).round(at<float>(x), at<uint16_t>(y), n);
}

void activate_row(const char* variant, uintptr_t x, bool bf16, Function function, size_t n) {
    const RowOperators& rows = rows_of(variant);
    if (bf16) return rows.activate_bf16(at<uint16_t>(x), function, n);
    rows.activate(at<float>(x), function, n);
}

void gate_row(const char* variant, uintptr_t a, uintptr_t b, Function function, uintptr_t y, size_t n) {
    rows_of(variant).gate(at<uint16_t>(a), at<uint16_t>(b), function, at<float>(y), n);
}

void rotate_row(const char* variant, uintptr_t x, size_t heads, size_t head_size, size_t size, uintptr_t cos,
                uintptr_t sin) {
    rows_of(variant).rotate(at<uint16_t>(x), heads, head_size, size, at<float>(cos), at<float>(sin));
}

// before: addresses of the rows before, the oldest first; 0 for none.
void convolve_row(const char* variant, ConvolveRow row, const std::vector<uintptr_t>& before, size_t n) {
    std::vector<const uint16_t*> rows;
    for (const uintptr_t each : before) rows.push_back(at<const uint16_t>(each));
    row.taps = rows.size() + 1;
    row.before = rows.data();
    rows_of(variant).convolve(row, n);
}

}  // namespace

void bind_rows(nb::module_& m) {
    nb::enum_<Function>(m, "Function")
        .value("identity", Function::kIdentity)
        .value("relu", Function::kRelu)
        .value("tanh", Function::kTanh)
        .value("gelu_tanh", Function::kGeluTanh)
        .value("silu", Function::kSilu)
        .value("relu2", Function::kRelu2);
    nb::enum_<WordKind>(m, "WordKind")
        .value("f32", WordKind::kF32)
        .value("bf16", WordKind::kBf16)
        .value("int8", WordKind::kInt8);
    bind_struct(m, "EmbedRow", Field{"word", &EmbedRow::word}, Field{"kind", &EmbedRow::kind},
                Field{"scale", &EmbedRow::scale}, Field{"position", &EmbedRow::position},
                Field{"type", &EmbedRow::type}, Field{"factor", &EmbedRow::factor});
    bind_struct(m, "ConvolveRow", Field{"b", &ConvolveRow::b}, Field{"c", &ConvolveRow::c}, Field{"x", &ConvolveRow::x},
                Field{"weight", &ConvolveRow::weight}, Field{"weight_stride", &ConvolveRow::weight_stride},
                Field{"bias", &ConvolveRow::bias}, Field{"product", &ConvolveRow::product},
                Field{"y", &ConvolveRow::y});
    bind_function(m, "embed_row", &embed_row);
    bind_function(m, "round_row", &round_row);
    bind_function(m, "activate_row", &activate_row);
    bind_function(m, "gate_row", &gate_row);
    bind_function(m, "rotate_row", &rotate_row);
    bind_function(m, "convolve_row", &convolve_row);
}
