// Memory for the buffers of runs: mapped, kept between calls, never more pieces than ran at once. No other allocation
// is made while a program runs on several threads: none can then fail where nobody hears of it, and the workers touch
// none of malloc's arenas, which would take 64 MiB of addresses each.
#pragma once
#include <stddef.h>

#include <atomic>

// One piece: `bytes` at `data`, which is at a multiple of 64.
struct Memory {
    char* data;
    size_t bytes;
    Memory* next;  // of those that are idle
};

// The pieces of one program. Any number of threads may borrow at once, and any may fork meanwhile.
class Memories {
public:
    Memories() = default;
    ~Memories();
    Memories(const Memories&) = delete;
    Memories& operator=(const Memories&) = delete;

    // A piece of at least `bytes`, any content; or null if the system has no more.
    Memory* borrow(size_t bytes);
    void give_back(Memory* memory);
    // Bytes mapped now.
    size_t bytes() const { return bytes_; }

private:
    Memory* take(size_t bytes);
    void release(Memory* memory);

    Memory* idle_ = nullptr;
    std::atomic<size_t> bytes_{0};
};
