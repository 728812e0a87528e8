#include "torch/abi.h"

#include <dlfcn.h>
#include <omp.h>

namespace torch_abi {

namespace {

Functions found;

template <class Function>
void look_up(void* library, const char* name, Function& function, bool needed = true) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function && needed) throw std::runtime_error(std::string("this torch has no ") + name + "; 2.8 has it");
}

int32_t number(void* library, const char* name) {
    int32_t (*function)();
    look_up(library, name, function);
    return function();
}

}  // namespace

const Functions& functions() { return found; }

void load(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!library) throw std::runtime_error(std::string(path) + " is not loaded: import torch first");
#define LOOK_UP(name) look_up(library, #name, found.name)
    LOOK_UP(aoti_torch_get_data_ptr);
    LOOK_UP(aoti_torch_get_dim);
    LOOK_UP(aoti_torch_get_sizes);
    LOOK_UP(aoti_torch_get_strides);
    LOOK_UP(aoti_torch_get_dtype);
    LOOK_UP(aoti_torch_get_device_type);
    LOOK_UP(aoti_torch_delete_tensor_object);
    LOOK_UP(aoti_torch_empty_strided);
    LOOK_UP(aoti_torch_library_init_fragment);
    LOOK_UP(aoti_torch_library_init_impl);
    LOOK_UP(aoti_torch_library_def);
    LOOK_UP(aoti_torch_library_impl);
#undef LOOK_UP
    look_up(library, "torch_get_num_threads", found.torch_get_num_threads, false);
    found.float32 = number(library, "aoti_torch_dtype_float32");
    found.bfloat16 = number(library, "aoti_torch_dtype_bfloat16");
    found.uint8 = number(library, "aoti_torch_dtype_uint8");
    found.int8 = number(library, "aoti_torch_dtype_int8");
    found.int32 = number(library, "aoti_torch_dtype_int32");
    found.cpu = number(library, "aoti_torch_device_type_cpu");
}

int threads() {
    uint32_t count;
    if (found.torch_get_num_threads && !found.torch_get_num_threads(&count)) return int(count);
    return omp_get_max_threads();
}

int64_t Tensor::count() const {
    int64_t product = 1;
    for (int64_t i = 0; i < dim_; ++i) product *= sizes_[i];
    return product;
}

bool Tensor::contiguous() const {
    int64_t step = 1;
    for (int64_t i = dim_ - 1; i >= 0; --i) {
        if (sizes_[i] != 1 && strides_[i] != step) return count() == 0;
        step *= sizes_[i];
    }
    return true;
}

Tensor Tensor::empty(std::initializer_list<int64_t> sizes, Type type) {
    constexpr size_t kMostDims = 4;
    int64_t strides[kMostDims], step = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = step;
        step *= sizes.begin()[i];
    }
    const int32_t dtypes[] = {found.float32, found.bfloat16, found.uint8, found.int8, found.int32};
    Handle handle;
    check(found.aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, dtypes[int(type)], found.cpu, 0,
                                         &handle),
          "empty_strided");
    return Tensor(handle);
}

}  // namespace torch_abi
