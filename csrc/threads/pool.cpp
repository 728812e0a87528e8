#include "threads/pool.h"

#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace {

// Rounds of waiting before a thread lets others have its core: about 20 microseconds, longer than any operator's end
// is apart on threads that all run, shorter than a time slice where one does not.
constexpr int kSpins = 1 << 10;
// Times a worker without work yields its core before it parks: about a millisecond of a quiet machine.
constexpr int kYields = 1 << 6;

// Of a worker's stack: kernels keep their tiles there, at most some tens of KiB. The system's default is 8 MiB of
// addresses, which is much where addresses are limited.
constexpr size_t kStackBytes = 1 << 20;

struct Job {
    void (*work)(void*, size_t, size_t);
    void* argument;
    size_t count;
    std::atomic<size_t> left;
};

struct Worker {
    std::atomic<Job*> job{nullptr};
    size_t index = 0;  // of this worker in its job
    std::mutex mutex;
    std::condition_variable wake;
    bool parked = false;     // under the mutex
    Worker* next = nullptr;  // of those that are idle

    void start(Job* given, size_t as) {
        index = as;
        job.store(given, std::memory_order_seq_cst);
        std::lock_guard<std::mutex> lock(mutex);
        if (parked) wake.notify_one();
    }

    Job* wait() {
        for (int yields = 0; yields < kYields; ++yields) {
            for (int spins = 0; spins < kSpins; ++spins) {
                if (Job* given = job.load(std::memory_order_acquire)) return given;
                _mm_pause();
            }
            sched_yield();
        }
        std::unique_lock<std::mutex> lock(mutex);
        parked = true;
        wake.wait(lock, [this] { return job.load(std::memory_order_acquire) != nullptr; });
        parked = false;
        return job.load(std::memory_order_acquire);
    }

    void run() {
        for (;;) {
            Job* given = wait();
            const size_t as = index;
            job.store(nullptr, std::memory_order_relaxed);
            given->work(given->argument, as, given->count);
            given->left.fetch_sub(1, std::memory_order_release);  // the last thing done with the job
        }
    }
};

// A thread that runs a new worker, or null where the system gives none.
Worker* start_worker() {
    Worker* worker = new (std::nothrow) Worker;
    pthread_attr_t attributes;
    if (!worker || pthread_attr_init(&attributes)) return nullptr;
    pthread_attr_setstacksize(&attributes, kStackBytes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    const auto run = [](void* given) -> void* {
        static_cast<Worker*>(given)->run();
        return nullptr;
    };
    const int error = pthread_create(&thread, &attributes, run, worker);
    pthread_attr_destroy(&attributes);
    if (!error) return worker;
    delete worker;
    return nullptr;
}

// How long a call waits for its turn before it runs beside the others, so that no long one holds it up for long.
constexpr std::chrono::milliseconds kPatience(50);

// A call that waits for its turn.
struct Waiting {
    size_t most;  // threads at work beside which it does not begin
    bool turn = false;
    std::condition_variable wake{};
    Waiting* next = nullptr;
};

// Who works on what. Threads at work, callers' and workers', are no more than the processors, and calls begin in the
// order in which they came: threads of one call on one processor would wait for each other by turns of the scheduler.
// Among calls of one thread each there may be one more, which has the processor while the next one wakes up. How many
// threads a call gets depends on how many calls there were lately, for the next one is best served by what is left.
struct Pool {
    std::mutex mutex;
    Worker* idle = nullptr;
    size_t workers = 0;
    size_t busy = 0;               // threads at work
    size_t shared = 0;             // calls of several threads that run
    size_t calls = 0, lately = 1;  // that run or wait
    Waiting *first = nullptr, *last = nullptr;
    // Asked of the system, which reads a file, when the module is loaded: a fork meanwhile would leave the child with a
    // constant that is for ever being made.
    size_t processors = std::thread::hardware_concurrency();

    // Begins a call of up to `wanted` threads, its own among them. Returns the number of workers that help it.
    size_t enter(size_t wanted, Worker** out) {
        std::unique_lock<std::mutex> lock(mutex);
        ++calls;
        lately = calls >= lately ? calls : (lately + calls) / 2;
        const size_t most = processors > wanted ? processors : wanted;
        if (!first && may_begin(most)) {
            ++busy;
        } else {
            wait(lock, most);
        }
        const size_t share = most / lately, left = most > busy ? most - busy : 0;
        const size_t others = std::min({wanted - 1, share > 1 ? share - 1 : 0, left});
        const size_t found = borrow(others, most, out);
        busy += found;
        shared += found > 0;
        return found;
    }

    void leave(Worker* const* helpers, size_t count) {
        std::lock_guard<std::mutex> lock(mutex);
        for (size_t i = 0; i < count; ++i) {
            helpers[i]->next = idle;
            idle = helpers[i];
        }
        busy -= count + 1;
        shared -= count > 0;
        --calls;
        for (; first && may_begin(first->most); ++busy) {
            first->turn = true;
            first->wake.notify_one();
            first = first->next;
        }
    }

private:
    bool may_begin(size_t most) const { return busy < most + (shared == 0 && busy > 0 && most > 1); }

    void wait(std::unique_lock<std::mutex>& lock, size_t most) {
        Waiting self{most};
        (first ? last->next : first) = &self;
        last = &self;
        // The system's clock: the sanitizers of GCC 12 do not know how C++ waits on the other one.
        const auto end = std::chrono::system_clock::now() + kPatience;
        if (self.wake.wait_until(lock, end, [&] { return self.turn; })) return;  // counted by who woke it
        Waiting *before = nullptr, *at = first;
        for (; at != &self; at = at->next) before = at;
        (before ? before->next : first) = self.next;
        if (last == &self) last = before;
        ++busy;
    }

    // Up to `wanted` idle workers; new ones as long as there are no more than `most`.
    size_t borrow(size_t wanted, size_t most, Worker** out) {
        size_t count = 0;
        for (; count < wanted && idle; idle = idle->next) out[count++] = idle;
        for (; count < wanted && workers < most; ++workers) {
            Worker* worker = start_worker();
            if (!worker) break;  // work with those there are
            out[count++] = worker;
        }
        return count;
    }
};

// Never destroyed: workers are parked in it when the process ends.
Pool& pool = *new Pool;

// A fork waits until nobody changes the pool; the child has none of its threads, and begins with an empty one.
const int at_fork = pthread_atfork([] { pool.mutex.lock(); }, [] { pool.mutex.unlock(); },
                                   [] {
                                       pool.idle = nullptr;
                                       pool.workers = pool.busy = pool.shared = pool.calls = 0;
                                       pool.first = pool.last = nullptr;
                                       pool.mutex.unlock();
                                   });

}  // namespace

void set_processors(size_t count) {
    std::lock_guard<std::mutex> lock(pool.mutex);
    pool.processors = count ? count : 1;
}

void give_way(int& spins) {
    _mm_pause();
    if (++spins > kSpins) sched_yield();  // another program has a core that one of us needs
}

void Barrier::wait() {
    const size_t round = round_.load(std::memory_order_acquire);
    if (here_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        here_.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    int spins = 0;
    while (round_.load(std::memory_order_acquire) == round) give_way(spins);
}

void run_in_pool(int threads, void (*work)(void*, size_t, size_t), void* argument) {
    Worker* helpers[kMostThreads];
    const size_t found = pool.enter(std::clamp(size_t(threads), size_t(1), kMostThreads), helpers);
    if (!found) {
        work(argument, 0, 1);
        return pool.leave(helpers, 0);
    }
    Job job{work, argument, found + 1, {found}};
    for (size_t i = 0; i < found; ++i) helpers[i]->start(&job, i + 1);
    work(argument, 0, job.count);
    int spins = 0;
    while (job.left.load(std::memory_order_acquire)) give_way(spins);
    pool.leave(helpers, found);
}
