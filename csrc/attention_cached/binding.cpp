#include "binding.h"

#include "dispatch.h"

void bind_attention_cached(nb::module_& m) {
    nb::enum_<CacheKind>(m, "CacheKind")
        .value("int8", CacheKind::kInt8)
        .value("int4", CacheKind::kInt4)
        .value("bf16", CacheKind::kBf16);
    bind_struct(m, "CacheLayer", Field{"kind", &CacheLayer::kind}, Field{"blocks", &CacheLayer::blocks},
                Field{"block_stride", &CacheLayer::block_stride}, Field{"head_stride", &CacheLayer::head_stride},
                Field{"head_size", &CacheLayer::head_size});
    bind_struct(m, "AppendCached", Field{"cache", &AppendCached::cache}, Field{"table", &AppendCached::table},
                Field{"table_stride", &AppendCached::table_stride}, Field{"past", &AppendCached::past},
                Field{"k", &AppendCached::k}, Field{"v", &AppendCached::v}, Field{"stride", &AppendCached::stride});
    bind_struct(m, "AttendCached", Field{"cache", &AttendCached::cache}, Field{"table", &AttendCached::table},
                Field{"table_stride", &AttendCached::table_stride}, Field{"past", &AttendCached::past},
                Field{"rows", &AttendCached::rows}, Field{"q", &AttendCached::q},
                Field{"q_stride", &AttendCached::q_stride}, Field{"out", &AttendCached::out},
                Field{"out_stride", &AttendCached::out_stride}, Field{"heads_per_kv", &AttendCached::heads_per_kv},
                Field{"scale", &AttendCached::scale}, Field{"softcap", &AttendCached::softcap},
                Field{"causal", &AttendCached::causal}, Field{"window", &AttendCached::window},
                Field{"sinks", &AttendCached::sinks});
    m.attr("CACHE_BLOCK") = size_t(kCacheBlock);
    m.attr("CACHE_HOT_BLOCKS") = size_t(kHotBlocks);
    m.attr("CACHE_PART") = size_t(kPart);
    bind_function(m, "cache_head_bytes", &cache_head_bytes);
    bind_function(m, "partial_floats", &partial_floats);
    bind_function(
        m, "append_cached",
        +[](const char* variant, const AppendCached& op, size_t token_begin, size_t token_end, size_t head_begin,
            size_t head_end) {
            kernel_of(attention_cached_variants, variant)->append(&op, token_begin, token_end, head_begin, head_end);
        });
    bind_function(
        m, "attend_cached",
        +[](const char* variant, const AttendCached& op, size_t head, size_t line_begin, size_t line_end, size_t part,
            uintptr_t partials) {
            kernel_of(attention_cached_variants, variant)
                ->attend(&op, head, line_begin, line_end, part, reinterpret_cast<float*>(partials));
        });
    bind_function(
        m, "merge_cached",
        +[](const char* variant, const AttendCached& op, size_t head, size_t line_begin, size_t line_end, size_t parts,
            uintptr_t partials, size_t part_stride) {
            kernel_of(attention_cached_variants, variant)
                ->merge(&op, head, line_begin, line_end, parts, reinterpret_cast<const float*>(partials), part_stride);
        });
}
