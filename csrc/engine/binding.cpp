// The class Program, for Python: addresses and sizes in. bitwright/engine checks what it passes.
#include "binding.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "program.h"

namespace {

using Address = uintptr_t;

template <class T>
const T* at(Address address) {
    return reinterpret_cast<const T*>(address);
}

// kind, width, offset, per_sequence
using BufferTuple = std::tuple<int, size_t, size_t, bool>;
// shift, multiplier, mode, scale, zero point, least code
using GridTuple = std::tuple<Address, Address, int, float, int, int>;

Grid grid_of(const GridTuple& g) {
    return {at<float>(std::get<0>(g)),
            at<float>(std::get<1>(g)),
            QuantizeMode(std::get<2>(g)),
            std::get<3>(g),
            std::get<4>(g),
            std::get<5>(g)};
}

void construct(Program* self, Isa isa, const std::vector<BufferTuple>& tuples, size_t arena_row, int out,
               size_t group_tokens) {
    std::vector<Buffer> buffers;
    for (const auto& [kind, width, offset, per_sequence] : tuples) {
        buffers.push_back({Kind(kind), width, offset, per_sequence});
    }
    new (self) Program(isa, std::move(buffers), arena_row, out, group_tokens);
}

bool run(Program& self, Address ids, Address types, Address starts, size_t sequences, int threads, Address out,
         Address seconds) {
    const nb::gil_scoped_release released;
    return self.run({at<int32_t>(ids), at<int32_t>(types), at<int64_t>(starts), sequences}, threads,
                    reinterpret_cast<float*>(out), reinterpret_cast<double*>(seconds));
}

}  // namespace

void bind_engine(nb::module_& m) {
    nb::enum_<Kind>(m, "BufferKind").value("f32", Kind::kF32).value("bf16", Kind::kBf16).value("codes", Kind::kCodes);
    nb::enum_<Pooling>(m, "PoolMode")
        .value("cls", Pooling::kCls)
        .value("mean", Pooling::kMean)
        .value("max", Pooling::kMax)
        .value("mean_sqrt_len_tokens", Pooling::kMeanSqrtLen)
        .value("weightedmean", Pooling::kWeightedMean)
        .value("lasttoken", Pooling::kLast);
    m.def("row_bytes", [](int kind, size_t width) { return row_bytes({Kind(kind), width, 0, false}); });
    nb::class_<Program>(m, "Program")
        .def("__init__", &construct)
        .def("embed",
             [](Program& p, Address words, Address word_scale, bool bf16, Address positions, size_t first,
                Address types, int out) {
                 p.add(Embed{at<void>(words), at<float>(word_scale), bf16, at<float>(positions), first,
                             at<float>(types), out});
             })
        .def("norm",
             [](Program& p, int x, int residual, int sum, int y, int codes, Address weight, Address bias, float eps,
                const GridTuple& grid) {
                 p.add(NormRows{x, residual, sum, y, codes, at<float>(weight), at<float>(bias), eps, grid_of(grid)});
             })
        .def("quantize",
             [](Program& p, int in, int out, const GridTuple& grid) { p.add(Quantize{in, out, grid_of(grid)}); })
        .def("round", [](Program& p, int in, int out, bool on_grid,
                         const GridTuple& grid) { p.add(Round{in, out, on_grid, grid_of(grid)}); })
        .def("linear_w8a8",
             [](Program& p, int in, int out, size_t column, size_t n, size_t linears, Address weight, Address colsum,
                Address scale, Address bias, Activation activation, const GridTuple& grid) {
                 p.add(MultiplyW8A8{in, out, column, n, linears, at<int8_t>(weight), at<int32_t>(colsum),
                                    at<float>(scale), at<float>(bias), activation, grid_of(grid)});
             })
        .def("linear_bf16",
             [](Program& p, int in, int out, size_t column, size_t n, Address weight, Address bias,
                Activation activation) {
                 p.add(MultiplyBf16{in, out, column, n, at<uint16_t>(weight), at<float>(bias), activation});
             })
        .def("linear_wna16",
             [](Program& p, int in, int out, size_t column, size_t n, size_t group, Address codes, Address levels,
                Address scale, Address zero, Address bias, Activation activation) {
                 const Wna16 weight{at<uint8_t>(codes), at<float>(levels), at<float>(scale),
                                    at<int8_t>(zero),   p.width(in),       group};
                 p.add(MultiplyWna16{in, out, column, n, weight, at<float>(bias), activation});
             })
        .def("attention",
             [](Program& p, int in, int out, size_t heads, size_t head_size, float scale, Address bias,
                size_t bias_stride, size_t window) {
                 p.add(Attend{in, out, heads, head_size, scale, at<float>(bias), bias_stride, window});
             })
        .def("attention_disentangled",
             [](Program& p, int in, int out, size_t heads, size_t head_size, float scale, Address key_table,
                Address query_table, size_t table_rows, Address row) {
                 p.add(AttendDisentangled{in, out, heads, head_size, scale, at<uint16_t>(key_table),
                                          at<uint16_t>(query_table), table_rows, at<int32_t>(row)});
             })
        .def("pool",
             [](Program& p, int in, int out, int mode, size_t column) { p.add(Pool{in, out, Pooling(mode), column}); })
        .def("normalize", [](Program& p, int rows) { p.add(Normalize{rows}); })
        .def("activate", [](Program& p, int rows, int function) { p.add(Activate{rows, Function(function)}); })
        .def("rotate", [](Program& p, int rows, size_t heads, size_t head_size, Address cos,
                          Address sin) { p.add(Rotate{rows, heads, head_size, at<float>(cos), at<float>(sin)}); })
        .def("gate", [](Program& p, int in, int out) { p.add(Gate{in, out}); })
        .def("run", &run)
        .def_prop_ro("memory", &Program::memory);
}
