#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <mutex>
#include <new>

#include "sizes.h"

namespace {

constexpr size_t kHugePage = 2 << 20;
constexpr size_t kHeader = 64;  // the piece's own description, at its beginning
static_assert(sizeof(Memory) <= kHeader);

// Of all lists of idle pieces: held for a few instructions. One for all, so that a fork can wait for it, and leave the
// child lists that are whole and that nobody holds.
std::mutex lists;
const int at_fork = pthread_atfork([] { lists.lock(); }, [] { lists.unlock(); }, [] { lists.unlock(); });

}  // namespace

Memories::~Memories() {
    while (idle_) {
        Memory* next = idle_->next;
        release(idle_);
        idle_ = next;
    }
}

// The smallest that is large enough if there is one, so that a large one is there for the next large call; else the
// largest.
Memory* Memories::take(size_t bytes) {
    std::lock_guard<std::mutex> lock(lists);
    Memory** best = &idle_;
    for (Memory** at = &idle_; *at; at = &(*at)->next) {
        const bool fits = (*at)->bytes >= bytes, best_fits = (*best)->bytes >= bytes;
        if (fits != best_fits ? fits : fits == ((*at)->bytes < (*best)->bytes)) best = at;
    }
    Memory* memory = *best;
    if (memory) *best = memory->next;
    return memory;
}

void Memories::release(Memory* memory) {
    const size_t mapped = memory->bytes + kHeader;
    bytes_ -= mapped;
    munmap(memory, mapped);
}

Memory* Memories::borrow(size_t bytes) {
    Memory* memory = take(bytes);
    if (memory && memory->bytes >= bytes) return memory;
    if (memory) release(memory);
    const size_t mapped = round_up(bytes + kHeader, kHugePage);
    void* at = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return nullptr;
    madvise(at, mapped, MADV_HUGEPAGE);  // advice: without it the rest works as well
    bytes_ += mapped;
    return new (at) Memory{static_cast<char*>(at) + kHeader, mapped - kHeader, nullptr};
}

void Memories::give_back(Memory* memory) {
    std::lock_guard<std::mutex> lock(lists);
    memory->next = idle_;
    idle_ = memory;
}
