// A soak of the native code for sanitizers: random operands for every kernel, random programs called by several threads
// at once, forks between them. Ends with an error at the first wrong byte; the sanitizer watches the rest.
//
//     soak SECONDS [SEED [ISA]]     by default every instruction set of this processor; SECONDS are shared among them
#include "soak.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "cpu.h"
#include "model.h"

namespace {

constexpr int kCallers = 3, kMostThreads = 4;
constexpr size_t kShared = 3;       // programs that all callers use
constexpr size_t kLeastRounds = 1;  // of an instruction set, however short the time: all together reach every operator
constexpr unsigned kPatience = 60;  // seconds that a forked child may take

#ifdef __SANITIZE_THREAD__
constexpr int kKernels = 0;  // rounds of kernels alone, on one thread
#else
constexpr int kKernels = 8;
#endif
// The locks of AddressSanitizer's allocator do not know of forks.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kForksMeanwhile = false;
#else
constexpr bool kForksMeanwhile = true;
#endif
constexpr int kForks = 30;  // between short calls

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

size_t operators[std::variant_size_v<Op>];  // of all programs
size_t kernels, programs, forks;
std::atomic<size_t> calls;

std::unique_ptr<Model> next_model(Random& random, Isa isa) {
    std::unique_ptr<Model> model = random_model(random, isa, programs++);
    for (size_t i = 0; i < std::variant_size_v<Op>; ++i) operators[i] += model->operators[i];
    return model;
}

// A child runs the programs too, on threads of its own. Its parent's other threads may be anywhere meanwhile.
template <class Work>
void fork_once(Work work) {
    const pid_t child = fork();
    if (child < 0) fail("fork", "no process");
    if (child == 0) {
        alarm(kPatience);
        work();
        _exit(0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0) fail("fork", "the child failed, or hung");
    ++forks;
}

// Forks while threads make calls so short that one of them often holds a lock just then.
void soak_forks() {
    const float word = 1.0f;
    const int32_t id = 0;
    const int64_t starts[] = {0, 1};
    Program program(Isa::kScalar, {{BufferKind::kF32, 1, 0, Per::kToken}}, 64, 0, 32);
    program.add(Embed{.words = &word,
                      .kind = WordKind::kF32,
                      .word_scale = nullptr,
                      .positions = nullptr,
                      .first_position = 0,
                      .padding = kNone,
                      .types = nullptr,
                      .factor = 1.0f,
                      .out = 0});
    const auto call = [&](int threads) {
        float out = 0.0f;
        if (!program.run({&id, nullptr, starts, 1}, threads, &out, nullptr) || out != word) fail("forks", "wrong");
    };
    std::atomic<bool> stop{false};
    std::vector<std::thread> callers;
    for (int i = 0; i < 2; ++i) {
        callers.emplace_back([&] {
            while (!stop) call(1);
        });
    }
    for (int i = 0; i < kForks; ++i) fork_once([&] { call(kMostThreads); });
    stop = true;
    for (std::thread& caller : callers) caller.join();
}

// Callers share programs, and each makes and destroys one of its own; the main thread forks meanwhile.
void soak_engine(Random& random, Isa isa) {
    std::vector<std::unique_ptr<Model>> shared, own;
    for (size_t i = 0; i < kShared; ++i) shared.push_back(next_model(random, isa));
    for (int i = 0; i < kCallers; ++i) own.push_back(next_model(random, isa));
    std::vector<std::thread> callers;
    for (int i = 0; i < kCallers; ++i) {
        callers.emplace_back([&shared, mine = std::move(own[i]), seed = random.bits()]() mutable {
            Random dice{seed};
            for (size_t call = 0; call < 8; ++call) {
                if (call == 4) mine.reset();
                const Model& model = mine && dice.one_in(3) ? *mine : *shared[dice.between(0, kShared - 1)];
                model.check(dice, dice.one_in(4) ? 40 : 4, kMostThreads, 2);
                ++calls;
            }
        });
    }
    const auto check = [&] {
        // ThreadSanitizer takes a child's thread for that of the parent whose stack it got; the pool's have others.
        for (const auto& model : shared) model->check(random, 8, kMostThreads, 1);
    };
    if (kForksMeanwhile) fork_once(check);
    for (std::thread& caller : callers) caller.join();
    fork_once(check);
}

void soak(Random& random, Isa isa, double seconds) {
    const double end = now() + seconds;
    for (size_t round = 0; round < kLeastRounds || now() < end; ++round) {
        for (int i = 0; i < kKernels; ++i, ++kernels) soak_kernels(random, isa);
        soak_engine(random, isa);
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 2) fail("usage", "soak SECONDS [SEED [ISA]]");
    const double seconds = atof(arguments[1]);
    const uint64_t seed = count > 2 ? strtoull(arguments[2], nullptr, 10) : 0;
    std::vector<IsaName> isas;
    for (const IsaName& each : kIsas) {
        if (count > 3 && strcmp(arguments[3], each.name)) continue;
        if (isa_supported(each.isa)) isas.insert(isas.begin(), each);
    }
    if (isas.empty()) fail(arguments[3], "this processor has no such instruction set");
    for (const IsaName& each : isas) {
        Random random{seed * std::size(kIsas) + size_t(each.isa)};
        const double begun = now();
        soak(random, each.isa, seconds / isas.size());
        printf("%-12s%7.1f s: %zu rounds of kernels, %zu programs, %zu calls, %zu forks so far\n", each.name,
               now() - begun, kernels, programs, calls.load(), forks);
        fflush(stdout);
    }
    if (kForksMeanwhile) soak_forks();
    for (size_t i = 0; i < std::variant_size_v<Op>; ++i) {
        if (!operators[i]) fail("operators", "one is in no program");
    }
    return 0;
}

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer would end a forked child that starts threads.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }
#endif
