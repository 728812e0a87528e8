// What operators of torch have in common: rows that come in, constants, memory, threads. Everything is internal to the
// file that includes it.
#pragma once
#include <stdlib.h>

#include <algorithm>
#include <memory>

#include "linear_w8a8/contract.h"
#include "sizes.h"
#include "threads/parallel.h"
#include "torch/abi.h"

namespace {

using torch_abi::Tensor;
using torch_abi::Type;
using Optional = std::optional<Tensor>;

// Weight bytes that repay waking one more thread, where they, not the products, take the time.
constexpr size_t kBytesWorthAThread = 1 << 17;

[[noreturn]] inline void refuse(const char* what) { throw std::invalid_argument(std::string("bitwright: ") + what); }

// Memory of this thread that grows and stays: a call per linear and token allocates nothing.
inline char* scratch(size_t bytes) {
    static thread_local std::unique_ptr<char, void (*)(void*)> held(nullptr, free);
    static thread_local size_t size = 0;
    if (bytes > size) {
        size = round_up(bytes + bytes / 2, 4096);
        held.reset(static_cast<char*>(aligned_alloc(64, size)));
        if (!held) {
            size = 0;
            throw std::bad_alloc();
        }
    }
    return held.get();
}

// The rows of x: f32 or bf16, [M, K] or one row [K], each row's values one after the other.
struct Rows {
    const void* x;
    bool bf16;
    size_t m, k, stride;
};

inline Rows rows_of(const Tensor& x) {
    if (x.type() != Type::kFloat32 && x.type() != Type::kBFloat16) refuse("x must be float32 or bfloat16");
    if (x.dim() != 2) refuse("x must be (M, K)");
    if (x.size(1) > 1 && x.stride(1) != 1) refuse("the values of a row of x must lie side by side");
    return {x.data<void>(), x.type() == Type::kBFloat16, size_t(x.size(0)), size_t(x.size(1)), size_t(x.stride(0))};
}

template <class T>
T* constant(const Tensor& tensor, Type type, size_t count, const char* what) {
    if (tensor.type() != type || size_t(tensor.count()) < count || !tensor.contiguous()) refuse(what);
    if (reinterpret_cast<uintptr_t>(tensor.data<void>()) % 64) refuse("constants must lie on multiples of 64 bytes");
    return tensor.data<T>();
}

template <class T>
T* constant(const Optional& tensor, Type type, size_t count, const char* what) {
    return tensor ? constant<T>(*tensor, type, count, what) : nullptr;
}

inline int threads_for(size_t m, size_t n, size_t k, size_t bytes) {
    const size_t useful = std::max(m * n * k / kWorthAThread, bytes / kBytesWorthAThread);
    return int(std::clamp<size_t>(useful, 1, size_t(torch_abi::threads())));
}

}  // namespace
