// The only file that knows OpenMP's threads. OpenMP, because torch's workers are OpenMP's too: a second pool beside
// them, spinning, costs several times the work. The runtime is not linked; native.py loads torch's copy first (see
// there).
#pragma once
#include <omp.h>
#include <stddef.h>

// Run work(index, count) on `threads` threads at once, index 0 to count - 1. count may be less than asked for.
template <class Work>
void parallel(int threads, const Work& work) {
    if (threads <= 1) return work(0, 1);
#pragma omp parallel num_threads(threads)
    work(omp_get_thread_num(), omp_get_num_threads());
}

// Wait, inside `parallel`, until every thread is here.
inline void barrier() {
#pragma omp barrier
}

// Multiply-adds that repay waking one more thread. Two threads broke even with one at 5 to 9 million in all with AMX,
// earlier with slower instruction sets.
constexpr size_t kWorthAThread = 1 << 21;

inline int useful_threads(int threads, size_t multiply_adds) {
    const size_t useful = multiply_adds / kWorthAThread;
    return useful < 1 ? 1 : size_t(threads) < useful ? threads : int(useful);
}
