// What the soak is made of: random numbers, and memory exactly as large as a contract says it must be.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <utility>

// splitmix64 (Steele et al. 2014): most of a soak's time would go into anything slower.
struct Random {
    uint64_t state;

    uint64_t bits() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    size_t between(size_t least, size_t most) { return least + bits() % (most - least + 1); }
    bool one_in(size_t n) { return bits() % n == 0; }
    // Nearly: the sum of four uniform numbers of 16 bits.
    float normal(float deviation) {
        const uint64_t z = bits();
        const int sum = int(z & 0xffff) + int(z >> 16 & 0xffff) + int(z >> 32 & 0xffff) + int(z >> 48) - 131070;
        return float(sum) * (deviation / 37837.0f);
    }
};

[[noreturn]] inline void fail(const char* what, const char* detail) {
    fprintf(stderr, "soak: %s: %s\n", what, detail);
    abort();
}

// Bytes that begin at a multiple of 64, full of what no operator wrote. Beside them lies either memory that
// AddressSanitizer guards, or a page that nothing may touch: compilers do not see the loads of tiles and masked
// vectors. A guarded page is right behind the last byte if it is to catch reads behind it; then the first is at a
// multiple of `grain` only.
class Exact {
public:
    Exact() = default;
    Exact(Random& random, size_t bytes, size_t grain) : bytes_(bytes) {
        if (random.one_in(2)) {
            if (posix_memalign(&data_, 64, bytes ? bytes : 1)) fail("memory", "out of it");
        } else {
            const size_t body = (bytes + kPage - 1) / kPage * kPage;
            mapped_ = body + 2 * kPage;
            base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            if (base_ == MAP_FAILED || mprotect(base_ + kPage, body, PROT_READ | PROT_WRITE)) fail("memory", "no map");
            const size_t free_ = body - bytes;
            data_ = base_ + kPage + (random.one_in(4) ? 0 : free_ / grain * grain);
        }
        memset(data_, 0xff, bytes);  // NaN, as f32 and as bf16
    }
    Exact(Exact&& other) noexcept { *this = std::move(other); }
    Exact& operator=(Exact&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        std::swap(base_, other.base_);
        std::swap(mapped_, other.mapped_);
        return *this;
    }
    ~Exact() { base_ ? (void)munmap(base_, mapped_) : free(data_); }

    template <class T>
    T* at() const {
        return static_cast<T*>(data_);
    }
    template <class T>
    T* at(size_t element) const {
        return at<T>() + element;
    }
    size_t bytes() const { return bytes_; }
    bool same(const Exact& other) const { return bytes_ == other.bytes_ && !memcmp(data_, other.data_, bytes_); }

private:
    static constexpr size_t kPage = 4096;
    void* data_ = nullptr;
    char* base_ = nullptr;
    size_t bytes_ = 0, mapped_ = 0;
};

// `count` elements; grain: to how many bytes they are aligned, 64 where a contract asks for that.
template <class T>
Exact room(Random& random, size_t count, size_t grain = sizeof(T)) {
    return Exact(random, count * sizeof(T), grain);
}
