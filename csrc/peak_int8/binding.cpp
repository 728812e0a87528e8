#include "binding.h"

#include <time.h>

#include "dispatch.h"

namespace {

double thread_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1e9 + now.tv_nsec;
}

// int8 operations per nanosecond of one core over `repeats` rounds of an instruction set's multiply-add; 0 where it has
// no such loop, or this processor does not run it.
double peak_int8_gops(Isa isa, uint64_t repeats) {
    const Variant<PeakInt8Fn*>* variant = isa_supported(isa) ? best_variant(peak_int8_variants, isa) : nullptr;
    if (!variant) return 0.0;
    const double start = thread_nanoseconds();
    const uint64_t operations = variant->kernel(repeats);
    return double(operations) / (thread_nanoseconds() - start);
}

}  // namespace

void bind_peak_int8(nb::module_& m) { bind_function(m, "peak_int8_gops", &peak_int8_gops); }
