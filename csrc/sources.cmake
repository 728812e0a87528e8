# The kernels and the engine, their Python binding (a list of its own), and how they are compiled: for the module, and for
# tests/native, which runs the same files without the binding under sanitizers. Paths are absolute: whoever includes this is elsewhere.
#
# Folder = operator, file = instruction set. Only these files see more than the baseline, so that no function compiled with
# AVX-512 can be the copy that the linker keeps for every processor.
set(operators quantize_rows quantize_groups linear_w8a8 linear_w4a8 linear_w4a16 linear_bf16 linear_wna16 attention
    attention_cached attention_int8 norm rows gram peak_int8)
set(flags_scalar -fno-tree-vectorize)
set(flags_avx2 -mavx2 -mfma)
set(flags_avxvnni ${flags_avx2} -mavxvnni)
set(flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
set(flags_avx512vnni ${flags_avx512} -mavx512vnni)
set(flags_avx512bf16 ${flags_avx512vnni} -mavx512bf16 -mprfchw)
set(flags_amx ${flags_avx512bf16} -mamx-tile -mamx-int8 -mamx-bf16)

set(native_sources cpu.cpp engine/executor.cpp engine/memory.cpp threads/pool.cpp)
list(TRANSFORM native_sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
foreach(operator IN LISTS operators)
  foreach(isa scalar avx2 avxvnni avx512 avx512vnni avx512bf16 amx dispatch)
    set(source ${CMAKE_CURRENT_LIST_DIR}/${operator}/${isa}.cpp)
    if(EXISTS "${source}")
      list(APPEND native_sources ${source})
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags_${isa}}")
    endif()
  endforeach()
endforeach()

set(binding_sources module.cpp engine/binding.cpp torch/binding.cpp torch/abi.cpp torch/experts.cpp torch/linears.cpp torch/register.cpp)
foreach(operator IN LISTS operators)
  list(APPEND binding_sources ${operator}/binding.cpp)
endforeach()
list(TRANSFORM binding_sources PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

# GCC 12 takes the undefined operands in its own AVX-512 headers for uninitialized variables. psabi: it warns of how a
# vector would be returned, by functions that are always inlined.
# No contraction: a product and a sum are one rounding only where the code says fma, the same in every variant. No trapping
# math: nobody asks which operations raised a flag, and loops with a comparison become vectors for AVX2 too.
set(native_options -Wall -Wextra -Wno-maybe-uninitialized -Wno-psabi -ffp-contract=off -fno-math-errno -fno-trapping-math)
