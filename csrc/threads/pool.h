// Threads of the engine: workers of one process-wide pool that spin for a while after their work, then park.
//
// Calls from several Python threads share the machine: no more threads are at work than it has processors, a call gets
// the fewer the more calls there are, and more calls than processors wait for their turn. Nothing here runs inside
// torch's own pool, nor beside it: torch's workers park between its operators, and the engine calls none.
#pragma once
#include <stddef.h>

#include <atomic>

// That a call may use: more are not asked of the system.
constexpr size_t kMostThreads = 512;

// Processors that all calls together may use; at first those of the process's affinity mask.
void set_processors(size_t count);

// One round of waiting for another thread; `spins`: rounds so far.
void give_way(int& spins);

// Waits until `count` threads are here; may be used again at once. Spins: between two operators lie microseconds.
class Barrier {
public:
    explicit Barrier(size_t count) : count_(count) {}
    void wait();

private:
    const size_t count_;
    std::atomic<size_t> here_{0}, round_{0};
};

// Run work(argument, index, count) on up to `threads` threads at once, the caller's among them: index 0 to count - 1.
// Fewer if others work too, or if the system gives no more. It may begin a while later: calls take turns.
// Returns when all are done. `work` must not throw.
void run_in_pool(int threads, void (*work)(void* argument, size_t index, size_t count), void* argument);

template <class Work>
void run_in_pool(int threads, Work& work) {
    run_in_pool(
        threads, [](void* argument, size_t index, size_t count) { (*static_cast<Work*>(argument))(index, count); },
        &work);
}
