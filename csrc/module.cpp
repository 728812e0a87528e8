// The Python module: what there is on this machine, and what every operator binds. See binding.h.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>
#include <vector>

#include "binding.h"
#include "dispatch.h"
#include "linear_w8a8/count.h"

namespace {

// name, the instruction set it belongs to, whether this processor runs it
using VariantRow = std::tuple<std::string, Isa, bool>;
using Named = std::vector<std::pair<std::string, bool>>;

struct Operator {
    const char* name;
    std::vector<VariantRow> (*variants)();
    std::optional<std::string> (*chosen)(Isa);
};

template <const auto& variants>
std::vector<VariantRow> rows_of() {
    std::vector<VariantRow> rows;
    for (const auto& variant : variants) rows.emplace_back(variant.name, variant.isa, runs(variant));
    return rows;
}

template <const auto& variants>
std::optional<std::string> chosen_of(Isa isa) {
    const auto* variant = best_variant(variants, isa);
    return variant ? std::optional<std::string>(variant->name) : std::nullopt;
}

template <const auto& variants>
constexpr Operator row(const char* name) {
    return {name, rows_of<variants>, chosen_of<variants>};
}

constexpr Operator kOperators[] = {
    row<attention_variants>("attention"),           row<attention_cached_variants>("attention_cached"),
    row<attention_int8_variants>("attention_int8"), row<gram_variants>("gram"),
    row<linear_bf16_variants>("linear_bf16"),       row<linear_w4a16_variants>("linear_w4a16"),
    row<linear_w4a8_variants>("linear_w4a8"),       row<linear_w8a8_variants>("linear_w8a8"),
    row<linear_wna16_variants>("linear_wna16"),     row<norm_variants>("norm"),
    row<peak_int8_variants>("peak_int8"),           row<quantize_groups_variants>("quantize_groups"),
    row<quantize_rows_variants>("quantize_rows"),   row<rows_variants>("rows"),
};

const Operator& operator_of(const std::string& name) {
    for (const Operator& each : kOperators) {
        if (name == each.name) return each;
    }
    throw nb::key_error(name.c_str());
}

std::vector<std::string> operators() {
    std::vector<std::string> names;
    for (const Operator& each : kOperators) names.emplace_back(each.name);
    return names;
}

Named isas() {
    Named table;
    for (const IsaName& each : kIsas) table.emplace_back(each.name, isa_supported(each.isa));
    return table;
}

Named features() {
    Named table;
    for (const CpuFeature* f = cpu_features(); f->name; ++f) table.emplace_back(f->name, f->present);
    return table;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::enum_<Isa> isa(m, "Isa");
    for (const IsaName& each : kIsas) isa.value(each.name, each.isa);
    nb::enum_<Activation>(m, "Activation").value("none", Activation::kNone).value("gelu", Activation::kGelu);
    nb::enum_<Output>(m, "Output")
        .value("f32", Output::kF32)
        .value("bf16", Output::kBf16)
        .value("codes", Output::kCodes)
        .value("sums", Output::kSums);
    m.def("isas", &isas);
    m.def("cpu_features", &features);
    m.def("operators", &operators);
    m.def("variants", [](const std::string& name) { return operator_of(name).variants(); });
    bind_function(m, "chosen", +[](const char* name, Isa isa) { return operator_of(name).chosen(isa); });
    m.def("kernel_calls", [] { return integer_linears.load(); });
    bind_attention(m);
    bind_attention_cached(m);
    bind_attention_int8(m);
    bind_gram(m);
    bind_linear_bf16(m);
    bind_linear_w4a16(m);
    bind_linear_w4a8(m);
    bind_linear_w8a8(m);
    bind_linear_wna16(m);
    bind_norm(m);
    bind_peak_int8(m);
    bind_quantize_groups(m);
    bind_quantize_rows(m);
    bind_rows(m);
    bind_torch(m);
    bind_engine(m);
}
