// torch's stable C interface, as far as the operators here need it: tensors in, tensors out, names in torch.ops.
//
// Neither torch's headers nor its libraries are needed to build: these functions are looked up by name in the libtorch
// of the process (torch promises that they stay; all are there from 2.8 on, `torch_get_num_threads` from 2.10). A value
// on an operator's stack is 64 bits: an integer, a double or a bool in the lower bytes; a tensor as a handle that the
// operator owns; an optional one as null, or the address of a value that the operator deletes.
#pragma once
#include <stdint.h>
#include <string.h>

#include <concepts>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace torch_abi {

using Handle = void*;
using Value = uint64_t;
using Boxed = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);

// Each returns 0, or a failure, but for those that return a dtype or a device.
struct Functions {
    int32_t (*aoti_torch_get_data_ptr)(Handle, void**);
    int32_t (*aoti_torch_get_dim)(Handle, int64_t*);
    int32_t (*aoti_torch_get_sizes)(Handle, int64_t**);
    int32_t (*aoti_torch_get_strides)(Handle, int64_t**);
    int32_t (*aoti_torch_get_dtype)(Handle, int32_t*);
    int32_t (*aoti_torch_get_device_type)(Handle, int32_t*);
    int32_t (*aoti_torch_delete_tensor_object)(Handle);
    int32_t (*aoti_torch_empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
    int32_t (*aoti_torch_library_init_fragment)(const char*, const char*, uint32_t, Handle*);
    int32_t (*aoti_torch_library_init_impl)(const char*, const char*, const char*, uint32_t, Handle*);
    int32_t (*aoti_torch_library_def)(Handle, const char*);
    int32_t (*aoti_torch_library_impl)(Handle, const char*, Boxed);
    int32_t (*torch_get_num_threads)(uint32_t*);  // null before 2.10
    int32_t float32, bfloat16, uint8, int8, int32, cpu;
};

// Of the libtorch that `load` found.
const Functions& functions();

// Looks the functions up in libtorch_cpu, by its path; it must be loaded already.
void load(const char* path);

// Threads that torch would use here.
int threads();

inline void check(int32_t failure, const char* what) {
    if (failure) throw std::runtime_error(std::string("torch: ") + what + " failed");
}

enum class Type { kFloat32, kBFloat16, kUint8, kInt8, kInt32, kOther };

// A tensor on the CPU, owned. Sizes and strides are torch's own.
class Tensor {
public:
    explicit Tensor(Handle handle) : handle_(handle) {
        const Functions& torch = functions();
        int32_t dtype, device;
        check(torch.aoti_torch_get_data_ptr(handle, &data_), "data_ptr");
        check(torch.aoti_torch_get_dim(handle, &dim_), "dim");
        check(torch.aoti_torch_get_sizes(handle, &sizes_), "sizes");
        check(torch.aoti_torch_get_strides(handle, &strides_), "strides");
        check(torch.aoti_torch_get_dtype(handle, &dtype), "dtype");
        check(torch.aoti_torch_get_device_type(handle, &device), "device");
        if (device != torch.cpu) throw std::invalid_argument("bitwright's operators take tensors on the CPU");
        type_ = dtype == torch.float32    ? Type::kFloat32
                : dtype == torch.bfloat16 ? Type::kBFloat16
                : dtype == torch.uint8    ? Type::kUint8
                : dtype == torch.int8     ? Type::kInt8
                : dtype == torch.int32    ? Type::kInt32
                                          : Type::kOther;
    }
    static Tensor empty(std::initializer_list<int64_t> sizes, Type type);

    Tensor(const Tensor&) = delete;
    Tensor(Tensor&& other) noexcept { swap(other); }
    Tensor& operator=(Tensor&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Tensor() {
        if (handle_) functions().aoti_torch_delete_tensor_object(handle_);
    }

    Handle release() { return std::exchange(handle_, nullptr); }
    int64_t dim() const { return dim_; }
    int64_t size(int64_t i) const { return sizes_[i]; }
    int64_t stride(int64_t i) const { return strides_[i]; }
    Type type() const { return type_; }
    int64_t count() const;
    bool contiguous() const;
    template <class T>
    T* data() const {
        return static_cast<T*>(data_);
    }

private:
    void swap(Tensor& other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(data_, other.data_);
        std::swap(dim_, other.dim_);
        std::swap(sizes_, other.sizes_);
        std::swap(strides_, other.strides_);
        std::swap(type_, other.type_);
    }
    Handle handle_ = nullptr;
    void* data_ = nullptr;
    int64_t dim_ = 0;
    int64_t *sizes_ = nullptr, *strides_ = nullptr;
    Type type_ = Type::kOther;
};

// From the stack.
template <class T>
struct Argument {
    static T of(Value value) {
        T result;
        memcpy(&result, &value, sizeof(T));
        return result;
    }
};
template <>
struct Argument<Tensor> {
    static Tensor of(Value value) { return Tensor(reinterpret_cast<Handle>(value)); }
};
template <class T>
struct Argument<std::optional<T>> {
    static std::optional<T> of(Value value) {
        if (!value) return std::nullopt;
        Value* held = reinterpret_cast<Value*>(value);
        const Value inner = *held;
        delete held;
        return Argument<T>::of(inner);
    }
};

// A function of such arguments as an operator.
template <auto function>
struct Operator;
template <class... T, Tensor (*function)(T...)>
struct Operator<function> {
    static void call(Value* stack, uint64_t, uint64_t) {
        const auto run = [&]<size_t... i>(std::index_sequence<i...>) {
            std::tuple<std::remove_cvref_t<T>...> arguments{Argument<std::remove_cvref_t<T>>::of(stack[i])...};
            return function(std::get<i>(arguments)...);
        };
        stack[0] = reinterpret_cast<Value>(run(std::index_sequence_for<T...>{}).release());
    }
};

}  // namespace torch_abi
