// Programs for Python: each operator's struct by its fields' names, arrays by their addresses (engine/ops).
#include "binding.h"

#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "program.h"
#include "threads/pool.h"

namespace {

using Address = uintptr_t;

bool run(Program& self, const Batch& batch, int threads, Address out, Address seconds) {
    const nb::gil_scoped_release released;
    return self.run(batch, threads, reinterpret_cast<float*>(out), reinterpret_cast<double*>(seconds));
}

void define_enumerations(nb::module_& m) {
    nb::enum_<BufferKind>(m, "BufferKind")
        .value("f32", BufferKind::kF32)
        .value("bf16", BufferKind::kBf16)
        .value("codes", BufferKind::kCodes)
        .value("groups", BufferKind::kGroups);
    nb::enum_<Per>(m, "Per")
        .value("token", Per::kToken)
        .value("sequence", Per::kSequence)
        .value("output", Per::kOutput);
    nb::enum_<PoolMode>(m, "PoolMode")
        .value("cls", PoolMode::kCls)
        .value("mean", PoolMode::kMean)
        .value("max", PoolMode::kMax)
        .value("mean_sqrt_len_tokens", PoolMode::kMeanSqrtLen)
        .value("weightedmean", PoolMode::kWeightedMean)
        .value("lasttoken", PoolMode::kLast);
}

// `source` in Python is `in` here, which Python keeps for itself.
void define_operators(nb::module_& m) {
    bind_struct(m, "Embed", Field{"words", &Embed::words}, Field{"kind", &Embed::kind},
                Field{"word_scale", &Embed::word_scale}, Field{"positions", &Embed::positions},
                Field{"first_position", &Embed::first_position}, Field{"padding", &Embed::padding},
                Field{"types", &Embed::types}, Field{"factor", &Embed::factor}, Field{"out", &Embed::out});
    bind_struct(m, "NormRows", Field{"x", &NormRows::x}, Field{"residual", &NormRows::residual},
                Field{"sum", &NormRows::sum}, Field{"y", &NormRows::y}, Field{"codes", &NormRows::codes},
                Field{"weight", &NormRows::weight}, Field{"bias", &NormRows::bias}, Field{"eps", &NormRows::eps},
                Field{"centred", &NormRows::centred}, Field{"residual_after", &NormRows::residual_after},
                Field{"grid", &NormRows::grid});
    using Columns = NormColumns;
    bind_struct(m, "NormColumns", Field{"rows", &Columns::rows}, Field{"column", &Columns::column},
                Field{"n", &Columns::n}, Field{"weight", &Columns::weight}, Field{"eps", &Columns::eps});
    bind_struct(m, "Quantize", Field{"source", &Quantize::in}, Field{"out", &Quantize::out},
                Field{"grid", &Quantize::grid});
    bind_struct(m, "Round", Field{"source", &Round::in}, Field{"out", &Round::out}, Field{"on_grid", &Round::on_grid},
                Field{"grid", &Round::grid});
    using W8A8 = MultiplyW8A8;
    bind_struct(m, "MultiplyW8A8", Field{"source", &W8A8::in}, Field{"out", &W8A8::out}, Field{"column", &W8A8::column},
                Field{"n", &W8A8::n}, Field{"linears", &W8A8::linears}, Field{"weight", &W8A8::weight},
                Field{"colsum", &W8A8::colsum}, Field{"scale_n", &W8A8::scale_n}, Field{"bias", &W8A8::bias},
                Field{"activation", &W8A8::activation}, Field{"grid", &W8A8::grid});
    using Bf16 = MultiplyBf16;
    bind_struct(m, "MultiplyBf16", Field{"source", &Bf16::in}, Field{"out", &Bf16::out}, Field{"column", &Bf16::column},
                Field{"n", &Bf16::n}, Field{"weight", &Bf16::weight}, Field{"bias", &Bf16::bias},
                Field{"activation", &Bf16::activation});
    using Packed = MultiplyWna16;
    bind_struct(m, "MultiplyWna16", Field{"source", &Packed::in}, Field{"out", &Packed::out},
                Field{"column", &Packed::column}, Field{"n", &Packed::n}, Field{"weight", &Packed::weight},
                Field{"bias", &Packed::bias}, Field{"activation", &Packed::activation});
    using W4A8 = MultiplyW4A8;
    bind_struct(m, "MultiplyW4A8", Field{"source", &W4A8::in}, Field{"out", &W4A8::out}, Field{"column", &W4A8::column},
                Field{"n", &W4A8::n}, Field{"linears", &W4A8::linears}, Field{"weight", &W4A8::weight},
                Field{"bias", &W4A8::bias}, Field{"activation", &W4A8::activation});
    bind_struct(m, "Attend", Field{"source", &Attend::in}, Field{"out", &Attend::out}, Field{"heads", &Attend::heads},
                Field{"head_size", &Attend::head_size}, Field{"scale", &Attend::scale}, Field{"bias", &Attend::bias},
                Field{"bias_stride", &Attend::bias_stride}, Field{"window", &Attend::window},
                Field{"integer", &Attend::integer});
    using Disentangled = AttendDisentangled;
    bind_struct(m, "AttendDisentangled", Field{"source", &Disentangled::in}, Field{"out", &Disentangled::out},
                Field{"heads", &Disentangled::heads}, Field{"head_size", &Disentangled::head_size},
                Field{"scale", &Disentangled::scale}, Field{"key_table", &Disentangled::key_table},
                Field{"query_table", &Disentangled::query_table}, Field{"table_rows", &Disentangled::table_rows},
                Field{"row", &Disentangled::row}, Field{"integer", &Disentangled::integer});
    using Past = AttendPast;
    bind_struct(m, "AttendPast", Field{"source", &Past::in}, Field{"out", &Past::out}, Field{"heads", &Past::heads},
                Field{"kv_heads", &Past::kv_heads}, Field{"head_size", &Past::head_size}, Field{"scale", &Past::scale},
                Field{"softcap", &Past::softcap}, Field{"window", &Past::window}, Field{"causal", &Past::causal},
                Field{"sinks", &Past::sinks}, Field{"kind", &Past::kind}, Field{"layer", &Past::layer},
                Field{"q_weight", &Past::q_weight}, Field{"k_weight", &Past::k_weight}, Field{"eps", &Past::eps},
                Field{"rotary", &Past::rotary}, Field{"interleaved", &Past::interleaved}, Field{"cos", &Past::cos},
                Field{"sin", &Past::sin});
    using Convolve = ConvolvePast;
    bind_struct(m, "ConvolvePast", Field{"source", &Convolve::in}, Field{"out", &Convolve::out},
                Field{"taps", &Convolve::taps}, Field{"rows", &Convolve::rows}, Field{"layer", &Convolve::layer},
                Field{"weight", &Convolve::weight}, Field{"bias", &Convolve::bias});
    bind_struct(m, "Repeat", Field{"source", &Repeat::in}, Field{"out", &Repeat::out});
    bind_struct(m, "Select", Field{"source", &Select::in}, Field{"out", &Select::out});
    bind_struct(m, "Pool", Field{"source", &Pool::in}, Field{"out", &Pool::out}, Field{"mode", &Pool::mode},
                Field{"column", &Pool::column});
    bind_struct(m, "Normalize", Field{"rows", &Normalize::rows});
    bind_struct(m, "Activate", Field{"rows", &Activate::rows}, Field{"function", &Activate::function});
    bind_struct(m, "Rotate", Field{"rows", &Rotate::rows}, Field{"heads", &Rotate::heads},
                Field{"head_size", &Rotate::head_size}, Field{"cos", &Rotate::cos}, Field{"sin", &Rotate::sin});
    bind_struct(m, "Gate", Field{"source", &Gate::in}, Field{"out", &Gate::out}, Field{"function", &Gate::function},
                Field{"grid", &Gate::grid});
    bind_struct(m, "Add", Field{"rows", &Add::rows}, Field{"source", &Add::in});
    bind_struct(m, "Softcap", Field{"rows", &Softcap::rows}, Field{"cap", &Softcap::cap});
}

}  // namespace

void bind_engine(nb::module_& m) {
    define_enumerations(m);
    m.attr("NO_BUFFER") = int(kNone);
    bind_struct(m, "Buffer", Field{"kind", &Buffer::kind}, Field{"width", &Buffer::width},
                Field{"offset", &Buffer::offset}, Field{"per", &Buffer::per}, Field{"group", &Buffer::group});
    bind_struct(m, "InputGrid", Field{"shift", &InputGrid::shift}, Field{"multiplier", &InputGrid::multiplier},
                Field{"mode", &InputGrid::mode}, Field{"static_scale", &InputGrid::static_scale},
                Field{"static_zero_point", &InputGrid::static_zero_point}, Field{"code_min", &InputGrid::code_min});
    define_operators(m);
    bind_struct(m, "Batch", Field{"ids", &Batch::ids}, Field{"types", &Batch::types}, Field{"starts", &Batch::starts},
                Field{"sequences", &Batch::sequences}, Field{"past", &Batch::past}, Field{"outputs", &Batch::outputs},
                Field{"output_count", &Batch::output_count}, Field{"cache", &Batch::cache},
                Field{"block_count", &Batch::block_count}, Field{"tables", &Batch::tables},
                Field{"table_stride", &Batch::table_stride});
    m.attr("MOST_TAPS") = size_t(kMostTaps);
    bind_function(m, "cache_rows_bytes", &cache_rows_bytes);
    m.def("set_processors", &set_processors);
    m.def("row_bytes",
          [](BufferKind kind, size_t width, size_t group) { return row_bytes({kind, width, 0, Per::kToken, group}); });
    nb::class_<Program>(m, "Program")
        .def(nb::init<Isa, std::vector<Buffer>, size_t, int, size_t>(), nb::arg("isa").noconvert(), nb::arg("buffers"),
             nb::arg("arena_row"), nb::arg("out"), nb::arg("group_tokens"))
        .def("add", &Program::add)
        .def("run", &run, nb::arg("batch"), nb::arg("threads"), nb::arg("out"), nb::arg("seconds"))
        .def_prop_ro("memory", &Program::memory);
}
